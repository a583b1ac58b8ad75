//! What every store has to keep, as tests against the trait. A database passes by `contract!(its test database)`.

pub(crate) mod builds;
pub(crate) mod files;
pub(crate) mod handlers;
pub(crate) mod identity;
pub(crate) mod leases;
pub(crate) mod routes;
pub(crate) mod uploads;

use std::sync::Arc;
use std::time::Duration;

use protoplex_wire::proto::{
    BeginUploadReply, BeginUploadRequest, CompleteUploadReply, CompleteUploadRequest, CreateTokenRequest,
    StoredFile,
};
use tokio::time::{Instant, sleep};

use super::{Store, StoreResult};
use crate::event_log::EventLog;

/// An empty database of one test.
pub(crate) trait Database {
    type Store: Store + EventLog;

    /// Opens it; again, after the store before was dropped without a word, as a crash does.
    async fn open(&self) -> Arc<Self::Store>;
}

macro_rules! contract {
    ($database:expr) => {
        contract! { @tests $database;
            uploads:
                a_token_opens_what_it_allows
                a_check_answers_as_a_begin_would_and_takes_nothing
                a_folder_stands_for_the_files_below_it
                a_public_id_belongs_to_one_token
                forged_tokens_are_refused
                a_token_ends_in_time
                refusals_tell_the_limit
                one_use_goes_to_exactly_one_of_many
                no_race_takes_more_than_the_quota
                an_undeclared_size_reserves_what_is_left
                an_abort_gives_back_once
                an_abort_that_overtakes_its_begin_wins
                a_repeated_begin_takes_once
                completing_charges_what_the_file_has
                a_repeated_completion_changes_nothing
                what_was_not_begun_is_not_completed
                malformed_uploads_are_refused
                uploads_outlive_a_crash;
            files:
                what_is_not_there_is_none
                the_last_to_complete_has_the_path
                the_same_content_keeps_its_first_form
                content_staged_on_two_nodes_is_stored_by_either
                two_completions_of_one_content_agree
                stored_is_marked_once
                pages_show_each_row_once
                pages_stay_within_host_and_prefix
                a_page_has_a_limit_in_bytes
                a_broken_cursor_is_refused;
            handlers:
                handlers_come_and_go
                conflicting_handlers_are_refused
                one_of_two_concurrent_handlers_wins
                a_change_of_handlers_is_made_whole_or_not_at_all
                each_version_of_the_handlers_is_read_back
                a_bounded_number_of_versions_is_kept;
            routes:
                the_higher_revision_of_a_member_stays
                routes_outlive_a_crash;
            builds:
                a_build_is_read_back_whole
                a_build_that_breaks_off_leaves_nothing
                a_dropped_deployment_leaves_nothing
                what_no_build_can_have_is_refused
                the_last_three_builds_are_kept
                hosts_have_builds_of_their_own
                builds_outlive_a_crash;
            leases:
                one_of_many_takes_a_lease
                a_renewal_keeps_the_term
                the_same_holder_takes_it_anew_at_once
                a_lease_ends
                an_ended_lease_is_not_renewed
                peeking_ends_a_lease_for_good
                a_restart_holds_it_for_one_whole_life
                a_restart_lets_the_holder_go_on
                a_released_lease_is_anybodys_at_once
                what_an_older_term_wants_changed_stays
                senseless_leases_are_refused;
            identity:
                a_join_token_lets_in_whom_it_is_for
                a_name_stays_of_the_kind_as_which_a_token_has_let_it_in
                another_key_under_a_name_that_has_joined_is_somebody_else
                one_use_of_a_join_token_goes_to_exactly_one_of_many
                what_no_join_token_can_be_is_refused
                names_are_revoked_and_readmitted
                who_leads_no_more_lets_nobody_in_and_shuts_nobody_out;
        }
    };
    (@tests $database:expr; $($part:ident: $($test:ident)+;)+) => {
        $($(
            #[tokio::test]
            async fn $test() {
                $crate::store::contract::$part::$test(&$database).await;
            }
        )+)+
    };
}
pub(crate) use contract;

const HOST: &str = "example.com";

/// Asks until there is an answer, at most ten seconds.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "still not so: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// A token for `example.com/files/`, of files up to 1,000 bytes, changed as the test needs it.
async fn token<S: Store>(store: &S, change: impl FnOnce(&mut CreateTokenRequest)) -> String {
    let mut request = CreateTokenRequest {
        host: HOST.to_owned(),
        path_prefix: "/files/".to_owned(),
        max_bytes: 1_000,
        ..Default::default()
    };
    change(&mut request);
    store.create_token(request).await.unwrap().token
}

/// A declared upload to `/files/a`.
fn upload(id: &str, token: &str, size: u64) -> BeginUploadRequest {
    BeginUploadRequest {
        token: token.to_owned(),
        host: HOST.to_owned(),
        path: "/files/a".to_owned(),
        size: Some(size),
        upload: id.to_owned(),
        watch: String::new(),
    }
}

/// Content, told apart by one letter, as staged on `files-1`.
pub(crate) fn content(letter: char, size: u64) -> StoredFile {
    StoredFile {
        reference: letter.to_string().repeat(128),
        size,
        stored_size: size,
        encoding: "identity".to_owned(),
        content_type: "text/plain".to_owned(),
        node: "files-1".to_owned(),
        stored_sha256: "0".repeat(64),
        ..Default::default()
    }
}

fn completion(begun: &BeginUploadRequest, file: StoredFile) -> CompleteUploadRequest {
    CompleteUploadRequest {
        upload: begun.upload.clone(),
        file: Some(file),
        host: begun.host.clone(),
        path: begun.path.clone(),
        content_type: "text/html".to_owned(),
    }
}

/// Begins and completes an upload to a path.
pub(crate) async fn put<S: Store>(store: &S, path: &str, file: StoredFile) -> CompleteUploadReply {
    let begun = begun(store, path, file.size).await;
    store.complete_upload(completion(&begun, file)).await.unwrap()
}

/// An upload to any path, begun with a token of its own.
pub(crate) async fn begun<S: Store>(store: &S, path: &str, size: u64) -> BeginUploadRequest {
    let token =
        token(store, |token| (token.host, token.path_prefix) = ("*".to_owned(), "/".to_owned())).await;
    let request = BeginUploadRequest { path: path.to_owned(), ..upload(&token, &token, size) };
    assert_eq!(store.begin_upload(request.clone()).await.unwrap().refusal, 0);
    request
}

/// What two calls at once come to.
async fn both<T>(one: impl Future<Output = T>, other: impl Future<Output = T>) -> [T; 2] {
    let (one, other) = tokio::join!(one, other);
    [one, other]
}

/// The bytes that an upload may have.
fn granted(reply: StoreResult<BeginUploadReply>) -> u64 {
    let reply = reply.unwrap();
    assert_eq!(reply.refusal, 0, "refused: {:?}", reply.refusal());
    reply.max_bytes
}
