//! Bodies that are being read: how many at once, and of whom. Slow ones cost those of other names nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;

use super::problem::Problem;

/// So many at once of one name.
const MAX_OF_ONE: usize = 16;
/// And so many long ones, of all names together and of one.
const MAX_LONG: usize = 32;
const MAX_LONG_OF_ONE: usize = 2;
/// One that says that it is shorter is not long.
const LONG_BYTES: usize = 64 << 10;
/// So long others wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a body may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Bodies {
    long: Semaphore,
    /// Of whom bodies are being read, and some others.
    names: Mutex<HashMap<String, Arc<OfOne>>>,
}

struct OfOne {
    all: Semaphore,
    long: Semaphore,
}

impl Default for Bodies {
    fn default() -> Self {
        Self { long: Semaphore::new(MAX_LONG), names: Mutex::default() }
    }
}

impl Bodies {
    /// A whole body of at most so many bytes, of whom this name is.
    pub(super) async fn read(&self, name: &str, request: Request, max: usize) -> Result<Vec<u8>, Problem> {
        let said = request.headers().get(header::CONTENT_LENGTH);
        let said = said.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let is_long = max > LONG_BYTES && said.is_none_or(|length| length > LONG_BYTES);
        let of_one = self.of(name);
        let places = async {
            let own = of_one.all.acquire().await?;
            let long = match is_long {
                true => Some((of_one.long.acquire().await?, self.long.acquire().await?)),
                false => None,
            };
            Ok((own, long))
        };
        let busy = |_| Status::unavailable("the seed reads as many bodies as it can");
        let _places = timeout(PATIENCE, places)
            .await
            .map_err(busy)?
            .map_err(|_: tokio::sync::AcquireError| Status::unavailable("the seed is ending"))?;
        match timeout(READ_TIMEOUT, whole(request.into_body(), max)).await {
            Ok(read) => read,
            Err(_) => {
                let detail = format!("the body took longer than {} s", READ_TIMEOUT.as_secs());
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
            }
        }
    }

    fn of(&self, name: &str) -> Arc<OfOne> {
        // Nothing panics while it is held.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return Arc::clone(known);
        }
        // Who is here for the first time pays for those who are gone.
        names.retain(|_, of_one| Arc::strong_count(of_one) > 1);
        let new = Arc::new(OfOne { all: Semaphore::new(MAX_OF_ONE), long: Semaphore::new(MAX_LONG_OF_ONE) });
        names.insert(name.to_owned(), Arc::clone(&new));
        new
    }
}

/// A whole body. One that is too long is read on for as much again, so that its sender hears why it is not taken.
async fn whole(body: Body, max: usize) -> Result<Vec<u8>, Problem> {
    let (mut frames, mut whole, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(frame) = frames.next().await {
        let broken = |error| Problem::malformed(format!("the body is broken: {error}"));
        let frame = frame.map_err(broken)?;
        length += frame.len();
        if length <= max {
            whole.extend_from_slice(&frame);
        } else if length > 2 * max {
            break;
        }
    }
    if length <= max {
        return Ok(whole);
    }
    Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {max} bytes")))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use axum::body::Bytes;
    use tokio::time::{Instant, sleep};

    use super::*;

    const MAX: usize = 8 << 20;

    fn never_whole(length: usize) -> Request {
        let stream = futures_util::stream::pending::<Result<Bytes, Infallible>>();
        Request::builder().header(header::CONTENT_LENGTH, length).body(Body::from_stream(stream)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bodies_of_one_name_cost_no_other_its_turn() {
        let bodies = Arc::new(Bodies::default());
        for number in 0..200 {
            let bodies = Arc::clone(&bodies);
            let length = if number % 2 == 0 { 10 } else { MAX };
            tokio::spawn(async move { bodies.read("slow", never_whole(length), MAX).await });
        }
        sleep(Duration::from_millis(1)).await;
        let begun = Instant::now();
        for length in [10, LONG_BYTES + 1] {
            let whole = Request::new(Body::from(vec![b' '; length]));
            assert_eq!(bodies.read("other", whole, MAX).await.unwrap().len(), length);
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let own = bodies.read("slow", Request::new(Body::from("{}")), MAX).await.unwrap_err();
        assert!(format!("{own:?}").contains("as many bodies as it can"), "{own:?}");
        let late = bodies.read("other", never_whole(10), MAX).await.unwrap_err();
        assert!(format!("{late:?}").contains("longer than 10 s"), "{late:?}");
        sleep(Duration::from_mins(1)).await;
        bodies.read("third", Request::new(Body::from("{}")), MAX).await.unwrap();
        assert!(bodies.names.lock().unwrap().keys().eq(["third"]), "nothing is kept of who is gone");
    }
}
