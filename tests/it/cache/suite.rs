//! What every cache promises.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use lamplighter::cache::{AfterUpload, CacheError, Digest, Inflight, Mark, Reading, Released, Stored, Uploaded};

use super::*;

suite!(
    claims_take_the_oldest_entries_first_and_keep_their_order,
    concurrent_claimers_lose_no_entry_and_share_none,
    an_empty_queue_leaves_no_trace,
    looking_at_a_queue_takes_nothing,
    a_batch_whose_owner_died_is_adopted_and_the_old_owner_can_change_nothing,
    a_lease_that_is_given_up_is_adopted_at_once_and_by_one_task_only,
    a_change_renews_the_lease,
    readings_are_numbered_and_keep_their_notes,
    marks_come_back_as_written_and_may_be_written_again,
    marks_with_a_gap_before_them_are_refused,
    buried_positions_come_back_in_order,
    release_deletes_what_was_sent_and_nothing_newer,
    a_record_rewritten_again_and_again_is_never_deleted_unsent,
    records_that_are_kept_are_remembered_as_sent,
    finish_forgets_the_batch_and_can_be_repeated,
    finish_carries_unsettled_entries_over_to_a_new_batch,
    a_finished_batch_cannot_be_begun_again,
    requeued_records_do_not_overwrite_newer_ones,
);

async fn claims_take_the_oldest_entries_first_and_keep_their_order(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 10).await;
    let lease = lease("a");
    assert_eq!(texts(&cache.claim(&lease, 3).await.unwrap()), ["tx:0", "tx:1", "tx:2"]);
    assert_eq!(texts(&cache.claim(&lease, 2).await.unwrap()), ["tx:3", "tx:4"]);
    assert_eq!(cache.depth(&queue()).await.unwrap(), 5);
    assert_eq!(texts(&cache.entries(&lease, 1, 3).await.unwrap()), ["tx:1", "tx:2", "tx:3"]);
    assert_eq!(cache.entries(&lease, 5, 3).await.unwrap(), Vec::<Bytes>::new());
    let expected = Inflight { batch: lease.batch.clone(), entries: 5, leased: true };
    assert_eq!(cache.inflight(&queue()).await.unwrap(), [expected]);
    assert_eq!(cache.claim(&lease, 100).await.unwrap().len(), 5);
    assert_eq!(cache.claim(&lease, 100).await.unwrap().len(), 0);
}

async fn concurrent_claimers_lose_no_entry_and_share_none(backend: Backend) {
    const ENTRIES: usize = 3_000;
    fill(&*backend.cache, ENTRIES).await;
    let claimers = (0..8).map(|n| {
        let cache = Arc::clone(&backend.cache);
        tokio::spawn(async move {
            let lease = lease(&format!("claimer {n}"));
            let mut claimed = Vec::new();
            loop {
                let some = cache.claim(&lease, 37).await.unwrap();
                if some.is_empty() {
                    let held = cache.entries(&lease, 0, u32::MAX).await.unwrap();
                    assert_eq!(held, claimed, "the batch holds what the claims returned");
                    return claimed;
                }
                claimed.extend(some);
            }
        })
    });
    let mut all = Vec::new();
    for claimer in claimers.collect::<Vec<_>>() {
        all.extend(claimer.await.unwrap());
    }
    assert_eq!(all.len(), ENTRIES);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), ENTRIES, "some entry was claimed twice");
}

async fn an_empty_queue_leaves_no_trace(backend: Backend) {
    assert!(backend.cache.claim(&lease("a"), 10).await.unwrap().is_empty());
    assert!(backend.cache.inflight(&queue()).await.unwrap().is_empty());
    assert_eq!(backend.cache.depth(&queue()).await.unwrap(), 0);
    backend.cache.ping().await.unwrap();
}

async fn looking_at_a_queue_takes_nothing(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 5).await;
    assert_eq!(texts(&cache.peek(&queue(), 0, 2).await.unwrap()), ["tx:0", "tx:1"]);
    assert_eq!(texts(&cache.peek(&queue(), 3, 9).await.unwrap()), ["tx:3", "tx:4"]);
    assert!(cache.peek(&queue(), 5, 9).await.unwrap().is_empty());
    assert!(cache.peek(&queue(), 0, 0).await.unwrap().is_empty());
    assert_eq!(cache.depth(&queue()).await.unwrap(), 5);
}

async fn a_batch_whose_owner_died_is_adopted_and_the_old_owner_can_change_nothing(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 4).await;
    let dead = lease_for("dead", Duration::from_millis(300));
    cache.claim(&dead, 3).await.unwrap();
    let heir = Lease { owner: "heir".to_owned(), ttl: LONG, ..dead.clone() };
    backend.let_the_lease_end(&dead).await;

    // Before and after somebody else has taken it.
    for adopted in [false, true] {
        if adopted {
            assert!(cache.adopt(&heir).await.unwrap());
            assert!(!cache.adopt(&heir).await.unwrap(), "a second task of the same owner took the batch as well");
        }
        let lost = [
            ("claim", cache.claim(&dead, 1).await.map(drop)),
            ("renew", cache.renew(&dead).await),
            ("begin_reading", cache.begin_reading(&dead, "x").await.map(drop)),
            ("seal", cache.seal(&dead, 1).await.map(drop)),
            ("append_marks", cache.append_marks(&dead, 1, 0, &[Mark::Settled]).await),
            ("bury", cache.bury(&dead, &[0]).await),
            ("release", cache.release(&dead, &[row("tx:0", "{\"n\":0}")], AfterUpload::Delete).await.map(drop)),
            ("release", cache.release(&dead, &[row("tx:0", "{\"n\":0}")], AfterUpload::Keep).await.map(drop)),
            ("finish", cache.finish(&dead, &[], &[]).await),
            ("finish", cache.finish(&dead, &[], &[Bytes::from_static(b"tx:0")]).await),
        ];
        for (method, outcome) in lost {
            assert!(
                matches!(&outcome, Err(CacheError::LeaseLost { batch }) if *batch == dead.batch),
                "{method} by the old owner (adopted: {adopted}) gave {outcome:?}"
            );
        }
        let released = cache.release_lease(&dead).await;
        assert_eq!(released.is_err(), adopted, "{released:?}");
    }

    assert_eq!(cache.depth(&queue()).await.unwrap(), 1);
    assert_eq!(cache.entries(&heir, 0, 10).await.unwrap().len(), 3);
    assert_eq!(cache.readings(&heir).await.unwrap(), []);
    assert_eq!(cache.buried(&heir).await.unwrap(), [0_u32; 0]);
    assert_eq!(cache.uploaded(&queue(), &["tx:0"]).await.unwrap(), [Uploaded::No]);
    assert_eq!(cache.inflight(&queue()).await.unwrap().len(), 1);
    cache.finish(&heir, &[], &[]).await.unwrap();
}

async fn a_lease_that_is_given_up_is_adopted_at_once_and_by_one_task_only(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 1).await;
    let first = lease("a");
    cache.claim(&first, 1).await.unwrap();
    let next = Lease { owner: "b".to_owned(), ..first.clone() };
    assert!(!cache.adopt(&next).await.unwrap(), "the lease is held");
    cache.release_lease(&first).await.unwrap();
    assert_eq!(cache.inflight(&queue()).await.unwrap().iter().filter(|batch| batch.leased).count(), 0);

    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let (cache, next) = (Arc::clone(cache), next.clone());
            tokio::spawn(async move { cache.adopt(&next).await.unwrap() })
        })
        .collect();
    let mut adopted = 0;
    for task in tasks {
        adopted += usize::from(task.await.unwrap());
    }
    assert_eq!(adopted, 1);
    let unknown = Lease { batch: ulid::Ulid::new().to_string(), ..next };
    assert!(!cache.adopt(&unknown).await.unwrap(), "there is no such batch");
}

async fn a_change_renews_the_lease(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 1).await;
    let short = lease_for("a", Duration::from_millis(400));
    cache.claim(&short, 1).await.unwrap();
    let long = Lease { ttl: LONG, ..short.clone() };
    cache.renew(&long).await.unwrap();
    if let Server::Sqlite { clock, .. } = &backend.server {
        clock.advance(short.ttl * 2);
    } else {
        let mut raw = backend.redis_server().raw(1).await;
        let key = format!("upload_queue:inflight:{}:lease", long.batch);
        let left: u64 = redis::cmd("PTTL").arg(key).query_async(&mut raw).await.unwrap();
        assert!(left > 1_000_000, "{left} ms are left");
    }
    cache.renew(&short).await.expect("the lease was made longer");
    backend.let_the_lease_end(&short).await;
    assert!(matches!(cache.renew(&short).await, Err(CacheError::LeaseLost { .. })));
}

async fn readings_are_numbered_and_keep_their_notes(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 1).await;
    let lease = lease("a");
    cache.claim(&lease, 1).await.unwrap();
    let notes: Vec<String> = (1..=12).map(|n| format!("{{\"tables\":[\"a\",\"ü\"],\"n\":{n}}}")).collect();
    for (n, note) in (1_u32..).zip(&notes) {
        assert_eq!(cache.begin_reading(&lease, note).await.unwrap(), n);
    }
    let expected: Vec<Reading> = (1..).zip(notes).map(|(number, note)| Reading { number, note }).collect();
    assert_eq!(cache.readings(&lease).await.unwrap(), expected);
}

async fn marks_come_back_as_written_and_may_be_written_again(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 4).await;
    let lease = lease("a");
    cache.claim(&lease, 4).await.unwrap();
    let reading = cache.begin_reading(&lease, "").await.unwrap();
    let marks = [
        Mark::Untouched,
        Mark::Sent { table: 7, key: sent("tx:1"), value: sent("a value"), magnitude: 3 },
        Mark::Settled,
        Mark::Unsettled,
        Mark::Sent { table: 255, key: Digest([255; 8]), value: Digest([254; 8]), magnitude: 63 },
    ];
    cache.append_marks(&lease, reading, 0, &marks[..2]).await.unwrap();
    // The answer got lost, so it is done again.
    cache.append_marks(&lease, reading, 0, &marks[..2]).await.unwrap();
    cache.append_marks(&lease, reading, 2, &marks[2..]).await.unwrap();
    assert_eq!(cache.marks(&lease, reading, 0, 100).await.unwrap(), marks);
    assert_eq!(cache.marks(&lease, reading, 1, 2).await.unwrap(), marks[1..3]);
    assert_eq!(cache.marks(&lease, reading, 5, 9).await.unwrap(), []);
    assert_eq!(cache.marks(&lease, reading + 1, 0, 9).await.unwrap(), []);
}

async fn marks_with_a_gap_before_them_are_refused(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 1).await;
    let lease = lease("a");
    cache.claim(&lease, 1).await.unwrap();
    let refused = cache.append_marks(&lease, 1, 1, &[Mark::Settled]).await.unwrap_err();
    assert!(matches!(refused, CacheError::Refused { .. }), "{refused}");
    assert_eq!(cache.marks(&lease, 1, 0, 9).await.unwrap(), []);
}

async fn buried_positions_come_back_in_order(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 1).await;
    let lease = lease("a");
    cache.claim(&lease, 1).await.unwrap();
    let many: Vec<u32> = (0..2_500).rev().collect();
    cache.bury(&lease, &many).await.unwrap();
    cache.bury(&lease, &[7, 60_000]).await.unwrap();
    cache.bury(&lease, &[]).await.unwrap();
    let expected: Vec<u32> = (0..2_500).chain([60_000]).collect();
    assert_eq!(cache.buried(&lease).await.unwrap(), expected);
}

async fn release_deletes_what_was_sent_and_nothing_newer(backend: Backend) {
    const RECORDS: usize = 700;
    let cache = &backend.cache;
    fill(&**cache, RECORDS).await;
    let lease = lease("a");
    cache.claim(&lease, 1_000).await.unwrap();
    let keys: Vec<String> = (0..RECORDS).map(|n| format!("tx:{n}")).collect();
    let records = rows(RECORDS);

    // Every seventh is rewritten, every eleventh is gone before its turn.
    let rewritten: Vec<usize> = (0..RECORDS).filter(|n| n % 7 == 0).collect();
    let news: Vec<_> = rewritten.iter().map(|n| record(&keys[*n], "{\"new\":true}")).collect();
    cache.produce(&queue(), &news, LONG).await.unwrap();
    let early: Vec<Sent<'_>> =
        records.iter().enumerate().filter(|(n, _)| n % 7 != 0 && n % 11 == 0).map(|(_, one)| one.clone()).collect();
    let gone = early.len() as u64;
    assert_eq!(
        cache.release(&lease, &early, AfterUpload::Delete).await.unwrap(),
        Released { done: gone, rewritten: 0, gone: 0 }
    );

    let released = cache.release(&lease, &records, AfterUpload::Delete).await.unwrap();
    let done = RECORDS as u64 - rewritten.len() as u64 - gone;
    assert_eq!(released, Released { done, rewritten: rewritten.len() as u64, gone });
    let refs: Vec<&str> = keys.iter().map(String::as_str).collect();
    for (n, one) in cache.read(1, &refs, 1_000, 8 << 20).await.unwrap().into_iter().enumerate() {
        let expected = if n % 7 == 0 { Stored::Value("{\"new\":true}".into()) } else { Stored::Missing };
        assert_eq!(one, expected, "record {n}");
    }
    assert_eq!(cache.release(&lease, &[], AfterUpload::Delete).await.unwrap(), Released::default());
}

async fn a_record_rewritten_again_and_again_is_never_deleted_unsent(backend: Backend) {
    const KEYS: usize = 150;
    const ROUNDS: usize = 30;
    let cache = Arc::clone(&backend.cache);
    fill(&*cache, 1).await;
    let lease = lease("a");
    cache.claim(&lease, 1).await.unwrap();
    let keys: Vec<String> = (0..KEYS).map(|n| format!("hot:{n}")).collect();
    let version = |n: usize, round: usize| format!("{{\"key\":{n},\"version\":{round}}}");

    // The only writer: it looks at each key before it writes the next version, so it sees which version was deleted.
    let (stop, producer_keys, producer_cache) = (Arc::new(AtomicBool::new(false)), keys.clone(), Arc::clone(&cache));
    let stopped = Arc::clone(&stop);
    let producer = tokio::spawn(async move {
        let mut deleted = Vec::new();
        let mut round = 0;
        while !stopped.load(Ordering::Relaxed) {
            for start in (0..KEYS).step_by(10) {
                let some = start..start + 10;
                let refs: Vec<&str> = producer_keys[some.clone()].iter().map(String::as_str).collect();
                if round > 0 {
                    let stored = producer_cache.read(1, &refs, 1_000, 8 << 20).await.unwrap();
                    for (n, one) in some.clone().zip(stored) {
                        match one {
                            Stored::Missing => deleted.push((n, version(n, round))),
                            other => assert_eq!(other, Stored::Value(version(n, round).into())),
                        }
                    }
                }
                let records: Vec<_> = some.map(|n| record(&producer_keys[n], &version(n, round + 1))).collect();
                producer_cache.produce(&queue(), &records, LONG).await.unwrap();
            }
            round += 1;
        }
        deleted
    });
    let refs: Vec<&str> = keys.iter().map(String::as_str).collect();
    let (mut sent, mut total) = (HashSet::new(), Released::default());
    // On a busy machine the two may pass each other by for a while.
    for round in 0.. {
        let stored = cache.read(1, &refs, 1_000, 8 << 20).await.unwrap();
        let mut records = Vec::new();
        for (n, one) in stored.into_iter().enumerate() {
            if let Stored::Value(value) = one {
                records.push(Sent::of(refs[n], &value));
                sent.insert((n, String::from_utf8(value.to_vec()).unwrap()));
            }
        }
        let released = cache.release(&lease, &records, AfterUpload::Delete).await.unwrap();
        assert_eq!(released.done + released.rewritten + released.gone, records.len() as u64);
        total.done += released.done;
        total.rewritten += released.rewritten;
        if round >= ROUNDS && total.done > 0 && total.rewritten > 0 {
            break;
        }
        assert!(round < 100 * ROUNDS, "the producer and the upload never meet: {total:?}");
    }
    stop.store(true, Ordering::Relaxed);
    let deleted = producer.await.unwrap();
    let unsent: Vec<_> = deleted.iter().filter(|one| !sent.contains(*one)).collect();
    assert!(unsent.is_empty(), "of {} deleted values {} were never sent: {unsent:?}", deleted.len(), unsent.len());
}

async fn records_that_are_kept_are_remembered_as_sent(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 100).await;
    let lease = lease("a");
    cache.claim(&lease, 100).await.unwrap();
    cache.produce(&queue(), &[record("tx:1", "new")], LONG).await.unwrap();
    let mut records = rows(100);
    records.push(row("gone", "{}"));
    let released = cache.release(&lease, &records, AfterUpload::Keep).await.unwrap();
    assert_eq!(released, Released { done: 99, rewritten: 1, gone: 1 });
    let stored = cache.read(1, &["tx:0", "tx:1"], 1_000, 8 << 20).await.unwrap();
    assert_eq!(stored, [Stored::Value("{\"n\":0}".into()), Stored::Value("new".into())]);
    let remembered = cache.sent(&queue(), &["tx:0", "tx:1", "tx:99", "gone"]).await.unwrap();
    assert_eq!(remembered, [Some(sent("{\"n\":0}")), None, Some(sent("{\"n\":99}")), None]);
}

async fn finish_forgets_the_batch_and_can_be_repeated(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 3).await;
    let lease = lease("a");
    cache.claim(&lease, 2).await.unwrap();
    let reading = cache.begin_reading(&lease, "note").await.unwrap();
    cache.append_marks(&lease, reading, 0, &[Mark::Settled, Mark::Settled]).await.unwrap();
    cache.bury(&lease, &[1]).await.unwrap();
    cache.finish(&lease, &[], &[]).await.unwrap();
    cache.finish(&lease, &[], &[]).await.expect("a repeated finish has nothing left to do");
    assert!(cache.inflight(&queue()).await.unwrap().is_empty());
    assert!(cache.entries(&lease, 0, 9).await.unwrap().is_empty());
    assert!(cache.readings(&lease).await.unwrap().is_empty());
    assert!(cache.marks(&lease, reading, 0, 9).await.unwrap().is_empty());
    assert!(cache.buried(&lease).await.unwrap().is_empty());
    assert_eq!(cache.depth(&queue()).await.unwrap(), 1);
}

async fn finish_carries_unsettled_entries_over_to_a_new_batch(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 2_600).await;
    let old = lease("a");
    while !cache.claim(&old, 1_000).await.unwrap().is_empty() {}
    let later = lease("a");
    let unsettled: Vec<Bytes> = (0..2_500).map(|n| Bytes::from(format!("tx:{n}"))).collect();
    cache.finish(&old, &[], &unsettled).await.unwrap();
    cache.finish(&old, &[], &unsettled).await.expect("a repeated finish has nothing left to do");

    let inflight = cache.inflight(&queue()).await.unwrap();
    let [Inflight { batch, entries: 2_500, leased: false }] = &inflight[..] else { panic!("{inflight:?}") };
    assert_ne!(*batch, old.batch);
    assert!(*batch < later.batch, "{batch} sorts after {}, which is younger", later.batch);
    let heir = Lease { batch: batch.clone(), owner: "b".to_owned(), ..old };
    assert!(cache.adopt(&heir).await.unwrap());
    assert_eq!(cache.entries(&heir, 0, 5_000).await.unwrap(), unsettled);
    cache.finish(&heir, &[], &[]).await.unwrap();
    assert!(cache.inflight(&queue()).await.unwrap().is_empty());
}

async fn a_finished_batch_cannot_be_begun_again(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 4).await;
    let sleeper = lease_for("sleeper", Duration::from_millis(300));
    cache.claim(&sleeper, 1).await.unwrap();
    backend.let_the_lease_end(&sleeper).await;
    let heir = Lease { owner: "heir".to_owned(), ttl: LONG, ..sleeper.clone() };
    assert!(cache.adopt(&heir).await.unwrap());
    cache.finish(&heir, &[], &[]).await.unwrap();

    // Were this claim to succeed, the warehouse would take the new entries for those that it has already.
    for lease in [&sleeper, &heir] {
        let claimed = cache.claim(lease, 3).await;
        assert!(matches!(claimed, Err(CacheError::LeaseLost { .. })), "{claimed:?}");
        assert!(!cache.adopt(lease).await.unwrap());
    }
    assert_eq!(cache.depth(&queue()).await.unwrap(), 3);
    assert!(cache.inflight(&queue()).await.unwrap().is_empty());
}

async fn requeued_records_do_not_overwrite_newer_ones(backend: Backend) {
    let cache = &backend.cache;
    cache.produce(&queue(), &[record("tx:1", "new")], LONG).await.unwrap();
    cache.requeue(&queue(), b"tx:1", "tx:1", Some(b"old"), LONG).await.unwrap();
    cache.requeue(&queue(), b"{\"key\":\"tx:2\"}", "tx:2", Some(b"old"), LONG).await.unwrap();
    cache.requeue(&queue(), b"tx:3", "tx:3", None, LONG).await.unwrap();
    let stored = cache.read(1, &["tx:1", "tx:2", "tx:3"], 1_000, 8 << 20).await.unwrap();
    assert_eq!(stored, [Stored::Value("new".into()), Stored::Value("old".into()), Stored::Missing]);
    assert_eq!(texts(&cache.peek(&queue(), 0, 9).await.unwrap()), ["tx:1", "tx:1", "{\"key\":\"tx:2\"}", "tx:3"]);
}
