//! The log of events, and what lasts beside it.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::proto::{
    AppendEventsReply, AppendEventsRequest, DeadEvent, DueEvent, DueEventsReply, DueEventsRequest,
    ListDeadEventsRequest, LoggedEvent, NewEvent, PostponeEventsReply, PostponeEventsRequest,
    PutSubscriptionRequest, ReadEventsReply, ReadEventsRequest, Subscription, SubscriptionList,
    SubscriptionMove, TrimEventsReply, TrimEventsRequest,
};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::{Named, PgStore, leases, lock, unsigned};
use crate::event_log::{self, EventLog, Head, Page};
use crate::store::{StoreResult, exact, integer};

impl EventLog for PgStore {
    async fn append_events(&self, request: AppendEventsRequest) -> StoreResult<AppendEventsReply> {
        event_log::check(&request.events)?;
        self.call(|| append(self, &request, unix_ms_now())).await
    }

    async fn read_events(&self, request: ReadEventsRequest) -> StoreResult<ReadEventsReply> {
        self.call(|| read(self, &request)).await
    }

    async fn trim_events(&self, request: TrimEventsRequest, now_ms: i64) -> StoreResult<TrimEventsReply> {
        self.call(|| trim(self, &request, now_ms)).await
    }

    async fn postpone_events(&self, request: PostponeEventsRequest) -> StoreResult<PostponeEventsReply> {
        event_log::check(&request.events)?;
        self.call(|| postpone_all(self, &request, unix_ms_now())).await
    }

    async fn due_events(&self, request: DueEventsRequest) -> StoreResult<DueEventsReply> {
        self.call(|| due_events(self, &request, unix_ms_now())).await
    }

    async fn drop_due(&self, numbers: Vec<u64>) -> StoreResult<()> {
        let numbers =
            numbers.into_iter().map(|number| exact("number", number)).collect::<Result<Vec<_>, _>>()?;
        self.call(|| async {
            sqlx::query("DELETE FROM due_events WHERE number = ANY($1)")
                .bind(&numbers)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
        .await
    }

    async fn put_subscription(&self, request: PutSubscriptionRequest) -> StoreResult<Subscription> {
        self.call(|| put_subscription(self, &request, unix_ms_now())).await
    }

    async fn list_subscriptions(&self) -> StoreResult<SubscriptionList> {
        self.call(|| list_subscriptions(self)).await
    }

    async fn move_subscriptions(&self, moves: Vec<SubscriptionMove>) -> StoreResult<()> {
        let positions =
            moves.iter().map(|it| exact("position", it.position)).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<_> = moves.into_iter().map(|it| it.name).collect();
        self.call(|| async {
            sqlx::query(
                "UPDATE subscriptions SET position = moved.position
                 FROM unnest($1::text[], $2::bigint[]) AS moved (name, position)
                 WHERE subscriptions.name = moved.name AND subscriptions.position < moved.position",
            )
            .bind(&names)
            .bind(&positions)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    async fn remove_subscription(&self, name: &str) -> StoreResult<()> {
        self.call(|| remove_subscription(self, name)).await
    }

    async fn bury_event(&self, dead: DeadEvent) -> StoreResult<()> {
        self.call(|| bury(self, &dead, unix_ms_now())).await
    }

    async fn list_buried(&self, request: ListDeadEventsRequest) -> StoreResult<Vec<DeadEvent>> {
        self.call(|| async {
            let query = sqlx::query(
                "SELECT subscription, position, attempts, died_at_ms, event FROM dead_events WHERE subscription = $1
                 ORDER BY position LIMIT $2",
            );
            let query = query.bind(&request.subscription).bind(i64::from(event_log::listed(request.limit)));
            let query = query.try_map(dead);
            let (mut rows, mut page, mut taken) = (query.fetch(&self.pool), Page::default(), Vec::new());
            while let Some(row) = rows.try_next().await?.filter(|row| page.takes(row.event.len())) {
                taken.push(row);
            }
            Ok(taken)
        })
        .await
    }

    async fn count_buried(&self) -> StoreResult<HashMap<String, u64>> {
        self.call(|| async {
            let counts =
                sqlx::query_as("SELECT subscription, count(*) FROM dead_events GROUP BY subscription");
            let counts: Vec<(String, i64)> = counts.fetch_all(&self.pool).await?;
            Ok(counts.into_iter().map(|(subscription, count)| (subscription, unsigned(count))).collect())
        })
        .await
    }
}

async fn append(
    store: &PgStore,
    request: &AppendEventsRequest,
    now_ms: i64,
) -> StoreResult<AppendEventsReply> {
    let mut change = store.change().await?;
    // Held until the end: one appends after the other, so that positions become visible in their order.
    let (position, bytes) =
        sqlx::query_as("SELECT position, bytes FROM event_head FOR UPDATE").fetch_one(&mut *change).await?;
    // Not before: the lease may have been taken over while this waited.
    leases::fence(&mut change, request.term).await?;
    let keys: Vec<&[u8]> = request.events.iter().map(|event| &event.key[..]).collect();
    // Which of them are too old isn't asked there: the planner would go through all by their time.
    let found: Vec<(Vec<u8>, i64)> =
        sqlx::query_as("SELECT key, kept_at_ms FROM event_keys WHERE key = ANY($1)")
            .bind(&keys)
            .fetch_all(&mut *change)
            .await?;
    let since = event_log::keys_since(now_ms);
    let known = found.into_iter().filter(|(_, kept_at_ms)| *kept_at_ms > since).map(|(key, _)| key).collect();
    let appending = event_log::append(request.events.clone(), known, Head { position, bytes });
    let entries = &appending.entries;
    sqlx::query(
        "INSERT INTO event_log (position, kept_at_ms, end_bytes, event)
         SELECT position, $2, end_bytes, event
         FROM unnest($1::bigint[], $3::bigint[], $4::bytea[]) AS added (position, end_bytes, event)",
    )
    .bind(entries.iter().map(|entry| entry.position).collect::<Vec<_>>())
    .bind(now_ms)
    .bind(entries.iter().map(|entry| entry.end_bytes).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| &entry.event[..]).collect::<Vec<_>>())
    .execute(&mut *change)
    .await?;
    sqlx::query(
        "INSERT INTO event_keys (key, kept_at_ms) SELECT key, $2 FROM unnest($1::bytea[]) AS added (key)
         ON CONFLICT (key) DO UPDATE SET kept_at_ms = excluded.kept_at_ms",
    )
    .bind(entries.iter().map(|entry| &entry.key[..]).collect::<Vec<_>>())
    .bind(now_ms)
    .execute(&mut *change)
    .await?;
    sqlx::query("UPDATE event_head SET position = $1, bytes = $2")
        .bind(appending.head.position)
        .bind(appending.head.bytes)
        .execute(&mut *change)
        .await?;
    change.commit().await?;
    Ok(AppendEventsReply { positions: appending.positions, kept_at_ms: now_ms })
}

async fn read(store: &PgStore, request: &ReadEventsRequest) -> StoreResult<ReadEventsReply> {
    // One transaction reads one state.
    let mut snapshot = store.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let events = sqlx::query(
        "SELECT position, kept_at_ms, event FROM event_log
         WHERE position > $1 AND end_bytes <=
             (SELECT end_bytes FROM event_log WHERE position > $1 ORDER BY position LIMIT 1) + $2
         ORDER BY position LIMIT $3",
    )
    .bind(exact("position", request.after)?)
    .bind(event_log::PAGE_BYTES)
    .bind(i64::from(request.limit.min(event_log::MAX_PAGE)))
    .try_map(logged)
    .fetch_all(&mut *snapshot)
    .await?;
    let (head, earliest) = ends(&mut snapshot).await?;
    Ok(ReadEventsReply { events, earliest, head })
}

async fn trim(store: &PgStore, request: &TrimEventsRequest, now_ms: i64) -> StoreResult<TrimEventsReply> {
    let mut change = store.change().await?;
    let Head { position, bytes } = head(&mut change).await?;
    let earliest: Option<i64> =
        sqlx::query_scalar("SELECT min(position) FROM event_log").fetch_one(&mut *change).await?;
    // None is looked at that could not be dropped now.
    let end = earliest.map_or(position, |earliest| position.min(earliest + event_log::DROPPED_AT_ONCE - 1));
    let kept: Option<i64> = sqlx::query_scalar(
        "SELECT position FROM event_log
         WHERE position <= $1 AND position > $2 AND kept_at_ms >= $3 AND end_bytes > $4 ORDER BY position LIMIT 1",
    )
    .bind(end)
    .bind(position.saturating_sub(integer(request.max_events)))
    .bind(now_ms.saturating_sub(integer(request.max_age_ms)))
    .bind(bytes.saturating_sub(integer(request.max_bytes)))
    .fetch_optional(&mut *change)
    .await?;
    let dropped = sqlx::query("DELETE FROM event_log WHERE position <= $1")
        .bind(kept.map_or(end, |kept| kept - 1))
        .execute(&mut *change)
        .await?
        .rows_affected();
    let keys = sqlx::query(
        "DELETE FROM event_keys WHERE key IN (SELECT key FROM event_keys WHERE kept_at_ms <= $1 LIMIT $2)",
    )
    .bind(event_log::keys_since(now_ms))
    .bind(event_log::DROPPED_AT_ONCE)
    .execute(&mut *change)
    .await?
    .rows_affected();
    change.commit().await?;
    let more = (kept.is_none() && end < position) || keys >= event_log::DROPPED_AT_ONCE.cast_unsigned();
    Ok(TrimEventsReply { dropped, more })
}

async fn postpone_all(
    store: &PgStore,
    request: &PostponeEventsRequest,
    now_ms: i64,
) -> StoreResult<PostponeEventsReply> {
    let due_at_ms = event_log::due_at(now_ms, request.delay_ms);
    let mut change = store.change().await?;
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM due_events").fetch_one(&mut *change).await?;
    if waiting >= event_log::MAX_POSTPONED {
        return Err(event_log::too_many_postponed());
    }
    let mut repeated = Vec::with_capacity(request.events.len());
    for event in &request.events {
        repeated.push(!postpone(&mut change, event, due_at_ms).await?);
    }
    change.commit().await?;
    Ok(PostponeEventsReply { repeated, due_at_ms })
}

async fn due_events(store: &PgStore, request: &DueEventsRequest, now_ms: i64) -> StoreResult<DueEventsReply> {
    let (most, limit) = (event_log::most_bytes(request), request.limit.min(event_log::MAX_PAGE));
    let query = sqlx::query(
        "SELECT number, event FROM due_events WHERE due_at_ms <= $1 AND length(event) <= $2
         ORDER BY due_at_ms, number LIMIT $3",
    );
    let query = query.bind(now_ms).bind(most).bind(i64::from(limit)).try_map(due);
    let (mut rows, mut page, mut events) = (query.fetch(&store.pool), Page::default(), Vec::new());
    while let Some(row) = rows.try_next().await?.filter(|row| page.takes(row.event.len())) {
        events.push(row);
    }
    drop(rows);
    let larger =
        sqlx::query_scalar("SELECT count(*) FROM due_events WHERE due_at_ms <= $1 AND length(event) > $2");
    let larger = unsigned(larger.bind(now_ms).bind(most).fetch_one(&store.pool).await?);
    Ok(DueEventsReply { events, larger })
}

async fn put_subscription(
    store: &PgStore,
    request: &PutSubscriptionRequest,
    now_ms: i64,
) -> StoreResult<Subscription> {
    let mut change = store.change().await?;
    // Two that come at once find the same one.
    lock(&mut change, Named::Subscription, "").await?;
    if let Some(known) = find(&mut change, &request.name).await? {
        return Ok(known);
    }
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM subscriptions").fetch_one(&mut *change).await?;
    if count >= event_log::MAX_SUBSCRIPTIONS {
        return Err(event_log::too_many_subscriptions());
    }
    let head = head(&mut change).await?.position;
    let position = request.after.map(|after| exact("position", after)).transpose()?.unwrap_or(head);
    sqlx::query(
        "INSERT INTO subscriptions (name, patterns, position, created_at_ms) VALUES ($1, $2, $3, $4)",
    )
    .bind(&request.name)
    .bind(event_log::join_patterns(&request.patterns))
    .bind(position.min(head))
    .bind(now_ms)
    .execute(&mut *change)
    .await?;
    let made = find(&mut change, &request.name).await?;
    change.commit().await?;
    Ok(made.unwrap_or_default())
}

async fn list_subscriptions(store: &PgStore) -> StoreResult<SubscriptionList> {
    let mut snapshot = store.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let subscriptions = sqlx::query(
        "SELECT name, patterns, position, created_at_ms,
                (SELECT count(*) FROM dead_events WHERE subscription = name) AS dead
         FROM subscriptions ORDER BY name",
    )
    .try_map(subscription)
    .fetch_all(&mut *snapshot)
    .await?;
    let (head, earliest) = ends(&mut snapshot).await?;
    Ok(SubscriptionList { subscriptions, head, earliest, ..Default::default() })
}

async fn remove_subscription(store: &PgStore, name: &str) -> StoreResult<()> {
    let mut change = store.change().await?;
    let mut removed = 0;
    for statement in
        ["DELETE FROM subscriptions WHERE name = $1", "DELETE FROM dead_events WHERE subscription = $1"]
    {
        removed += sqlx::query(statement).bind(name).execute(&mut *change).await?.rows_affected();
    }
    change.commit().await?;
    if removed == 0 { Err(event_log::no_subscription(name)) } else { Ok(()) }
}

async fn bury(store: &PgStore, dead: &DeadEvent, now_ms: i64) -> StoreResult<()> {
    let mut change = store.change().await?;
    sqlx::query(
        "INSERT INTO dead_events (subscription, position, attempts, died_at_ms, event) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING",
    )
    .bind(&dead.subscription)
    .bind(exact("position", dead.position)?)
    .bind(i64::from(dead.attempts))
    .bind(now_ms)
    .bind(&dead.event)
    .execute(&mut *change)
    .await?;
    sqlx::query(
        "DELETE FROM dead_events WHERE subscription = $1 AND position <= (
             SELECT position FROM dead_events WHERE subscription = $1
             ORDER BY position DESC LIMIT 1 OFFSET $2)",
    )
    .bind(&dead.subscription)
    .bind(event_log::MAX_DEAD)
    .execute(&mut *change)
    .await?;
    Ok(change.commit().await?)
}

/// The last position that was given, and the first that is kept.
async fn ends(connection: &mut PgConnection) -> StoreResult<(u64, u64)> {
    let head = unsigned(head(connection).await?.position);
    let earliest: Option<i64> =
        sqlx::query_scalar("SELECT min(position) FROM event_log").fetch_one(connection).await?;
    Ok((head, earliest.map_or(head + 1, unsigned)))
}

/// Has an event published later, or at once where that moment is past. `false` where it waits already.
pub(super) async fn postpone(
    change: &mut PgConnection,
    event: &NewEvent,
    due_at_ms: i64,
) -> StoreResult<bool> {
    let put = sqlx::query(
        "INSERT INTO due_events (due_at_ms, key, event) VALUES ($1, $2, $3) ON CONFLICT (key) DO NOTHING",
    )
    .bind(due_at_ms)
    .bind(&event.key)
    .bind(&event.event)
    .execute(change)
    .await?;
    Ok(put.rows_affected() > 0)
}

async fn head(connection: &mut PgConnection) -> StoreResult<Head> {
    let (position, bytes) =
        sqlx::query_as("SELECT position, bytes FROM event_head").fetch_one(connection).await?;
    Ok(Head { position, bytes })
}

async fn find(connection: &mut PgConnection, name: &str) -> StoreResult<Option<Subscription>> {
    let query = sqlx::query(
        "SELECT name, patterns, position, created_at_ms,
                (SELECT count(*) FROM dead_events WHERE subscription = name) AS dead
         FROM subscriptions WHERE name = $1",
    );
    Ok(query.bind(name).try_map(subscription).fetch_optional(connection).await?)
}

fn logged(row: PgRow) -> Result<LoggedEvent, sqlx::Error> {
    Ok(LoggedEvent {
        position: row.try_get("position").map(unsigned)?,
        kept_at_ms: row.try_get("kept_at_ms")?,
        event: row.try_get("event")?,
    })
}

fn due(row: PgRow) -> Result<DueEvent, sqlx::Error> {
    Ok(DueEvent { number: row.try_get("number").map(unsigned)?, event: row.try_get("event")? })
}

fn subscription(row: PgRow) -> Result<Subscription, sqlx::Error> {
    Ok(Subscription {
        name: row.try_get("name")?,
        patterns: event_log::split_patterns(row.try_get("patterns")?),
        position: row.try_get("position").map(unsigned)?,
        dead: row.try_get("dead").map(unsigned)?,
        subscribers: 0,
        created_at_ms: row.try_get("created_at_ms")?,
    })
}

fn dead(row: PgRow) -> Result<DeadEvent, sqlx::Error> {
    Ok(DeadEvent {
        subscription: row.try_get("subscription")?,
        position: row.try_get("position").map(unsigned)?,
        attempts: row.try_get("attempts").map(|attempts: i64| u32::try_from(attempts).unwrap_or(u32::MAX))?,
        died_at_ms: row.try_get("died_at_ms")?,
        event: row.try_get("event")?,
    })
}
