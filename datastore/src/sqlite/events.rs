//! The log of events, and what lasts beside it.

use std::collections::{HashMap, HashSet};

use futures_util::TryStreamExt;
use protoplex_wire::clock::unix_ms_now;
use protoplex_wire::proto::{
    AppendEventsReply, AppendEventsRequest, DeadEvent, DueEvent, DueEventsReply, DueEventsRequest,
    ListDeadEventsRequest, LoggedEvent, NewEvent, PostponeEventsReply, PostponeEventsRequest,
    PutSubscriptionRequest, ReadEventsReply, ReadEventsRequest, Subscription, SubscriptionList,
    SubscriptionMove, TrimEventsReply, TrimEventsRequest,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{SqliteStore, leases};
use crate::event_log::{self, EventLog, Head, Page};
use crate::store::{StoreResult, exact, integer};

impl EventLog for SqliteStore {
    async fn append_events(&self, request: AppendEventsRequest) -> StoreResult<AppendEventsReply> {
        event_log::check(&request.events)?;
        let now_ms = unix_ms_now();
        let mut change = self.change().await?;
        leases::fence(&mut change, request.term).await?;
        let mut known = HashSet::new();
        for event in &request.events {
            let is_known: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM event_keys WHERE key = ? AND kept_at_ms > ?)",
            )
            .bind(&event.key)
            .bind(event_log::keys_since(now_ms))
            .fetch_one(&mut *change)
            .await?;
            if is_known {
                known.insert(event.key.clone());
            }
        }
        let appending = event_log::append(request.events, known, head(&mut change).await?);
        for entry in &appending.entries {
            sqlx::query("INSERT INTO event_log (position, kept_at_ms, end_bytes, event) VALUES (?, ?, ?, ?)")
                .bind(entry.position)
                .bind(now_ms)
                .bind(entry.end_bytes)
                .bind(&entry.event)
                .execute(&mut *change)
                .await?;
            sqlx::query(
                "INSERT INTO event_keys (key, kept_at_ms) VALUES (?, ?)
                 ON CONFLICT (key) DO UPDATE SET kept_at_ms = excluded.kept_at_ms",
            )
            .bind(&entry.key)
            .bind(now_ms)
            .execute(&mut *change)
            .await?;
        }
        sqlx::query("UPDATE event_head SET position = ?, bytes = ?")
            .bind(appending.head.position)
            .bind(appending.head.bytes)
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(AppendEventsReply { positions: appending.positions, kept_at_ms: now_ms })
    }

    async fn read_events(&self, request: ReadEventsRequest) -> StoreResult<ReadEventsReply> {
        let mut snapshot = self.readers.begin().await?;
        let after = exact("position", request.after)?;
        let events = sqlx::query(
            "SELECT position, kept_at_ms, event FROM event_log
             WHERE position > ?1 AND end_bytes <=
                 (SELECT end_bytes FROM event_log WHERE position > ?1 ORDER BY position LIMIT 1) + ?2
             ORDER BY position LIMIT ?3",
        )
        .bind(after)
        .bind(event_log::PAGE_BYTES)
        .bind(request.limit.min(event_log::MAX_PAGE))
        .try_map(logged)
        .fetch_all(&mut *snapshot)
        .await?;
        let (head, earliest) = ends(&mut snapshot).await?;
        Ok(ReadEventsReply { events, earliest, head })
    }

    async fn trim_events(&self, request: TrimEventsRequest, now_ms: i64) -> StoreResult<TrimEventsReply> {
        let mut change = self.change().await?;
        let Head { position, bytes } = head(&mut change).await?;
        let earliest: Option<i64> =
            sqlx::query_scalar("SELECT min(position) FROM event_log").fetch_one(&mut *change).await?;
        // None is looked at that could not be dropped now.
        let end =
            earliest.map_or(position, |earliest| position.min(earliest + event_log::DROPPED_AT_ONCE - 1));
        let kept: Option<i64> = sqlx::query_scalar(
            "SELECT position FROM event_log
             WHERE position <= ? AND position > ? AND kept_at_ms >= ? AND end_bytes > ? ORDER BY position LIMIT 1",
        )
        .bind(end)
        .bind(position.saturating_sub(integer(request.max_events)))
        .bind(now_ms.saturating_sub(integer(request.max_age_ms)))
        .bind(bytes.saturating_sub(integer(request.max_bytes)))
        .fetch_optional(&mut *change)
        .await?;
        let dropped = sqlx::query("DELETE FROM event_log WHERE position <= ?")
            .bind(kept.map_or(end, |kept| kept - 1))
            .execute(&mut *change)
            .await?
            .rows_affected();
        let keys = sqlx::query(
            "DELETE FROM event_keys WHERE key IN (SELECT key FROM event_keys WHERE kept_at_ms <= ? LIMIT ?)",
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

    async fn postpone_events(&self, request: PostponeEventsRequest) -> StoreResult<PostponeEventsReply> {
        event_log::check(&request.events)?;
        let due_at_ms = event_log::due_at(unix_ms_now(), request.delay_ms);
        let mut change = self.change().await?;
        let waiting: i64 =
            sqlx::query_scalar("SELECT count(*) FROM due_events").fetch_one(&mut *change).await?;
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

    async fn due_events(&self, request: DueEventsRequest) -> StoreResult<DueEventsReply> {
        let (now_ms, most) = (unix_ms_now(), event_log::most_bytes(&request));
        let query = sqlx::query(
            "SELECT number, event FROM due_events WHERE due_at_ms <= ? AND length(event) <= ?
             ORDER BY due_at_ms, number LIMIT ?",
        );
        let query = query.bind(now_ms).bind(most).bind(request.limit.min(event_log::MAX_PAGE)).try_map(due);
        let (mut rows, mut page, mut events) = (query.fetch(&self.readers), Page::default(), Vec::new());
        while let Some(row) = rows.try_next().await?.filter(|row| page.takes(row.event.len())) {
            events.push(row);
        }
        drop(rows);
        let larger =
            sqlx::query_scalar("SELECT count(*) FROM due_events WHERE due_at_ms <= ? AND length(event) > ?");
        let larger = larger.bind(now_ms).bind(most).fetch_one(&self.readers).await?;
        Ok(DueEventsReply { events, larger })
    }

    async fn drop_due(&self, numbers: Vec<u64>) -> StoreResult<()> {
        let mut change = self.change().await?;
        for number in numbers {
            sqlx::query("DELETE FROM due_events WHERE number = ?")
                .bind(exact("number", number)?)
                .execute(&mut *change)
                .await?;
        }
        Ok(change.commit().await?)
    }

    async fn put_subscription(&self, request: PutSubscriptionRequest) -> StoreResult<Subscription> {
        let mut change = self.change().await?;
        if let Some(known) = find(&mut change, &request.name).await? {
            return Ok(known);
        }
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM subscriptions").fetch_one(&mut *change).await?;
        if count >= event_log::MAX_SUBSCRIPTIONS {
            return Err(event_log::too_many_subscriptions());
        }
        let head = head(&mut change).await?.position;
        let position = request.after.map(|after| exact("position", after)).transpose()?.unwrap_or(head);
        sqlx::query(
            "INSERT INTO subscriptions (name, patterns, position, created_at_ms) VALUES (?, ?, ?, ?)",
        )
        .bind(&request.name)
        .bind(event_log::join_patterns(&request.patterns))
        .bind(position.min(head))
        .bind(unix_ms_now())
        .execute(&mut *change)
        .await?;
        let made = find(&mut change, &request.name).await?;
        change.commit().await?;
        Ok(made.unwrap_or_default())
    }

    async fn list_subscriptions(&self) -> StoreResult<SubscriptionList> {
        let mut snapshot = self.readers.begin().await?;
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

    async fn move_subscriptions(&self, moves: Vec<SubscriptionMove>) -> StoreResult<()> {
        let mut change = self.change().await?;
        for SubscriptionMove { name, position } in moves {
            sqlx::query("UPDATE subscriptions SET position = ?2 WHERE name = ?1 AND position < ?2")
                .bind(name)
                .bind(exact("position", position)?)
                .execute(&mut *change)
                .await?;
        }
        Ok(change.commit().await?)
    }

    async fn remove_subscription(&self, name: &str) -> StoreResult<()> {
        let mut change = self.change().await?;
        let mut removed = 0;
        for statement in
            ["DELETE FROM subscriptions WHERE name = ?", "DELETE FROM dead_events WHERE subscription = ?"]
        {
            removed += sqlx::query(statement).bind(name).execute(&mut *change).await?.rows_affected();
        }
        change.commit().await?;
        if removed == 0 { Err(event_log::no_subscription(name)) } else { Ok(()) }
    }

    async fn bury_event(&self, dead: DeadEvent) -> StoreResult<()> {
        let mut change = self.change().await?;
        sqlx::query(
            "INSERT INTO dead_events (subscription, position, attempts, died_at_ms, event) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(&dead.subscription)
        .bind(exact("position", dead.position)?)
        .bind(dead.attempts)
        .bind(unix_ms_now())
        .bind(&dead.event)
        .execute(&mut *change)
        .await?;
        sqlx::query(
            "DELETE FROM dead_events WHERE subscription = ?1 AND position <= (
                 SELECT position FROM dead_events WHERE subscription = ?1
                 ORDER BY position DESC LIMIT 1 OFFSET ?2)",
        )
        .bind(&dead.subscription)
        .bind(event_log::MAX_DEAD)
        .execute(&mut *change)
        .await?;
        Ok(change.commit().await?)
    }

    async fn list_buried(&self, request: ListDeadEventsRequest) -> StoreResult<Vec<DeadEvent>> {
        let query = sqlx::query(
            "SELECT subscription, position, attempts, died_at_ms, event FROM dead_events WHERE subscription = ?
             ORDER BY position LIMIT ?",
        );
        let query = query.bind(request.subscription).bind(event_log::listed(request.limit));
        let query = query.try_map(dead);
        let (mut rows, mut page, mut taken) = (query.fetch(&self.readers), Page::default(), Vec::new());
        while let Some(row) = rows.try_next().await?.filter(|row| page.takes(row.event.len())) {
            taken.push(row);
        }
        Ok(taken)
    }

    async fn count_buried(&self) -> StoreResult<HashMap<String, u64>> {
        let counts = sqlx::query_as("SELECT subscription, count(*) FROM dead_events GROUP BY subscription");
        let counts: Vec<(String, u64)> = counts.fetch_all(&self.readers).await?;
        Ok(counts.into_iter().collect())
    }
}

/// Has an event published later, or at once where that moment is past. `false` where it waits already.
pub(super) async fn postpone(
    change: &mut SqliteConnection,
    event: &NewEvent,
    due_at_ms: i64,
) -> StoreResult<bool> {
    let put = sqlx::query(
        "INSERT INTO due_events (due_at_ms, key, event) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
    )
    .bind(due_at_ms)
    .bind(&event.key)
    .bind(&event.event)
    .execute(change)
    .await?;
    Ok(put.rows_affected() > 0)
}

/// The last position that was given, and the first that is kept.
async fn ends(connection: &mut SqliteConnection) -> StoreResult<(u64, u64)> {
    let head = head(connection).await?.position.cast_unsigned();
    let earliest: Option<u64> =
        sqlx::query_scalar("SELECT min(position) FROM event_log").fetch_one(connection).await?;
    Ok((head, earliest.unwrap_or(head + 1)))
}

async fn head(connection: &mut SqliteConnection) -> StoreResult<Head> {
    let (position, bytes) =
        sqlx::query_as("SELECT position, bytes FROM event_head").fetch_one(connection).await?;
    Ok(Head { position, bytes })
}

async fn find(connection: &mut SqliteConnection, name: &str) -> StoreResult<Option<Subscription>> {
    let query = sqlx::query(
        "SELECT name, patterns, position, created_at_ms,
                (SELECT count(*) FROM dead_events WHERE subscription = name) AS dead
         FROM subscriptions WHERE name = ?",
    );
    Ok(query.bind(name).try_map(subscription).fetch_optional(connection).await?)
}

fn logged(row: SqliteRow) -> Result<LoggedEvent, sqlx::Error> {
    Ok(LoggedEvent {
        position: row.try_get("position")?,
        kept_at_ms: row.try_get("kept_at_ms")?,
        event: row.try_get("event")?,
    })
}

fn due(row: SqliteRow) -> Result<DueEvent, sqlx::Error> {
    Ok(DueEvent { number: row.try_get("number")?, event: row.try_get("event")? })
}

fn subscription(row: SqliteRow) -> Result<Subscription, sqlx::Error> {
    Ok(Subscription {
        name: row.try_get("name")?,
        patterns: event_log::split_patterns(row.try_get("patterns")?),
        position: row.try_get("position")?,
        dead: row.try_get("dead")?,
        subscribers: 0,
        created_at_ms: row.try_get("created_at_ms")?,
    })
}

fn dead(row: SqliteRow) -> Result<DeadEvent, sqlx::Error> {
    Ok(DeadEvent {
        subscription: row.try_get("subscription")?,
        position: row.try_get("position")?,
        attempts: row.try_get("attempts")?,
        died_at_ms: row.try_get("died_at_ms")?,
        event: row.try_get("event")?,
    })
}
