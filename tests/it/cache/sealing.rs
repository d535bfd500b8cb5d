//! Sealed readings: of two that may have sent the same record, the later learns of the earlier.

use std::collections::HashSet;
use std::sync::Arc;

use lamplighter::cache::{AfterUpload, CacheError, Mark, Rival, Uploaded};

use super::*;

suite!(
    the_reading_sealed_later_learns_of_the_earlier_one_and_never_the_other_way_round,
    of_two_concurrent_readings_exactly_one_learns_of_the_other,
    sealing_is_repeatable,
    a_reading_that_never_began_cannot_be_sealed,
    a_batch_that_was_finished_before_a_reading_began_is_no_rival,
    readings_of_one_batch_and_of_other_queues_are_no_rivals,
    what_was_not_loaded_vanishes_when_its_batch_is_finished,
    marks_of_a_rival_are_there_before_and_after_its_batch_is_finished,
    a_key_is_uploaded_once_a_finished_batch_sent_it_and_pending_before,
    keys_are_found_behind_many_other_marks,
    a_finish_during_the_search_hides_nothing,
);

async fn begun(cache: &dyn UploadCache, owner: &str) -> (Lease, u32) {
    let lease = claim_one(cache, owner).await;
    let reading = reading_of(cache, &lease, &["tx:0"]).await;
    (lease, reading)
}

fn rival(lease: &Lease, reading: u32) -> Rival {
    Rival { batch: lease.batch.clone(), reading }
}

fn sorted(mut rivals: Vec<Rival>) -> Vec<(String, u32)> {
    rivals.sort_by(|a, b| (&a.batch, a.reading).cmp(&(&b.batch, b.reading)));
    rivals.into_iter().map(|rival| (rival.batch, rival.reading)).collect()
}

async fn the_reading_sealed_later_learns_of_the_earlier_one_and_never_the_other_way_round(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 3).await;
    let (a, reading_a) = begun(&**cache, "a").await;
    let (b, reading_b) = begun(&**cache, "b").await;
    let (c, reading_c) = begun(&**cache, "b").await;
    assert_eq!(cache.seal(&b, reading_b).await.unwrap(), []);
    assert_eq!(cache.seal(&a, reading_a).await.unwrap(), [rival(&b, reading_b)]);
    let both = sorted(vec![rival(&a, reading_a), rival(&b, reading_b)]);
    assert_eq!(sorted(cache.seal(&c, reading_c).await.unwrap()), both);
    // A batch may read again; that reading is the last then.
    let again = reading_of(&**cache, &b, &["tx:0"]).await;
    let others = sorted(vec![rival(&a, reading_a), rival(&c, reading_c)]);
    assert_eq!(sorted(cache.seal(&b, again).await.unwrap()), others);
}

async fn of_two_concurrent_readings_exactly_one_learns_of_the_other(backend: Backend) {
    const BATCHES: usize = 12;
    const ROUNDS: u32 = 5;
    let cache = &backend.cache;
    fill(&**cache, BATCHES).await;
    let mut sealers = Vec::new();
    for n in 0..BATCHES {
        let (cache, lease) = (Arc::clone(cache), claim_one(&**cache, &format!("sealer {n}")).await);
        sealers.push(tokio::spawn(async move {
            let mut learnt = Vec::new();
            for _ in 0..ROUNDS {
                let reading = reading_of(&*cache, &lease, &["tx:0"]).await;
                for rival in cache.seal(&lease, reading).await.unwrap() {
                    learnt.push(((lease.batch.clone(), reading), (rival.batch, rival.reading)));
                }
            }
            (lease.batch, learnt)
        }));
    }
    let (mut batches, mut saw) = (Vec::new(), HashSet::new());
    for sealer in sealers {
        let (batch, learnt) = sealer.await.unwrap();
        let answers = learnt.len();
        batches.push(batch);
        let before = saw.len();
        saw.extend(learnt);
        assert_eq!(saw.len() - before, answers, "a rival was named twice");
    }
    for (n, one) in batches.iter().enumerate() {
        for other in &batches[..n] {
            for one in (1..=ROUNDS).map(|reading| (one.clone(), reading)) {
                for other in (1..=ROUNDS).map(|reading| (other.clone(), reading)) {
                    let there = saw.contains(&(one.clone(), other.clone()));
                    let back = saw.contains(&(other.clone(), one.clone()));
                    assert!(there != back, "{one:?} saw {other:?}: {there}, and was seen: {back}");
                }
            }
        }
    }
}

async fn sealing_is_repeatable(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 4).await;
    let (a, reading_a) = begun(&**cache, "a").await;
    let (b, reading_b) = begun(&**cache, "b").await;
    let (c, reading_c) = begun(&**cache, "c").await;
    cache.seal(&a, reading_a).await.unwrap();
    assert_eq!(cache.seal(&b, reading_b).await.unwrap(), [rival(&a, reading_a)]);
    cache.seal(&c, reading_c).await.unwrap();
    for step in ["nothing changed", "the earlier one is finished", "the later one is finished"] {
        match step {
            "the earlier one is finished" => cache.finish(&a, &[reading_a], &[]).await.unwrap(),
            "the later one is finished" => cache.finish(&c, &[reading_c], &[]).await.unwrap(),
            _ => {}
        }
        assert_eq!(cache.seal(&b, reading_b).await.unwrap(), [rival(&a, reading_a)], "{step}");
    }
    // Whoever takes the batch over gets the answer as well.
    cache.release_lease(&b).await.unwrap();
    let heir = Lease { owner: "heir".to_owned(), ..b.clone() };
    assert!(cache.adopt(&heir).await.unwrap());
    assert_eq!(cache.seal(&heir, reading_b).await.unwrap(), [rival(&a, reading_a)]);
    let lost = cache.seal(&b, reading_b).await;
    assert!(matches!(lost, Err(CacheError::LeaseLost { .. })), "{lost:?}");
    let over = cache.seal(&a, reading_a).await;
    assert!(matches!(over, Err(CacheError::LeaseLost { .. })), "{over:?}");
}

async fn a_reading_that_never_began_cannot_be_sealed(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 1).await;
    let lease = claim_one(&**cache, "a").await;
    let refused = cache.seal(&lease, 1).await;
    assert!(matches!(refused, Err(CacheError::Refused { .. })), "{refused:?}");
}

async fn a_batch_that_was_finished_before_a_reading_began_is_no_rival(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 4).await;
    let (early, reading_early) = begun(&**cache, "early").await;
    let (late, reading_late) = begun(&**cache, "late").await;
    cache.seal(&early, reading_early).await.unwrap();
    cache.seal(&late, reading_late).await.unwrap();
    let (old, old_reading) = begun(&**cache, "old").await;
    cache.finish(&early, &[reading_early], &[]).await.unwrap();

    let (new, new_reading) = begun(&**cache, "new").await;
    cache.finish(&late, &[reading_late], &[]).await.unwrap();
    assert_eq!(cache.seal(&new, new_reading).await.unwrap(), [rival(&late, reading_late)]);
    let all = sorted(vec![rival(&early, reading_early), rival(&late, reading_late), rival(&new, new_reading)]);
    assert_eq!(sorted(cache.seal(&old, old_reading).await.unwrap()), all);

    // A second reading begins later, and so has fewer rivals than the first.
    let again = reading_of(&**cache, &old, &["tx:0"]).await;
    assert_eq!(cache.seal(&old, again).await.unwrap(), [rival(&new, new_reading)]);
}

async fn readings_of_one_batch_and_of_other_queues_are_no_rivals(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 2).await;
    let (a, first) = begun(&**cache, "a").await;
    cache.seal(&a, first).await.unwrap();
    let second = reading_of(&**cache, &a, &["tx:0"]).await;
    assert_eq!(cache.seal(&a, second).await.unwrap(), []);
    for other in [QueueRef { database: 2, ..queue() }, QueueRef { queue: "another".to_owned(), ..queue() }] {
        cache.produce(&other, &[record("tx:0", "{}")], LONG).await.unwrap();
        let b = Lease { queue: other.clone(), ..lease("b") };
        cache.claim(&b, 1).await.unwrap();
        let reading = reading_of(&**cache, &b, &["tx:0"]).await;
        assert_eq!(cache.seal(&b, reading).await.unwrap(), []);
        assert_eq!(cache.uploaded(&other, &["tx:0"]).await.unwrap(), [Uploaded::Pending]);
        cache.finish(&b, &[], &[]).await.unwrap();
        assert_eq!(cache.uploaded(&other, &["tx:0"]).await.unwrap(), [Uploaded::No]);
    }
}

async fn what_was_not_loaded_vanishes_when_its_batch_is_finished(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 3).await;
    let (waiting, waiting_reading) = begun(&**cache, "waiting").await;
    let a = claim_one(&**cache, "a").await;
    for (n, key) in (1_u32..).zip(["one", "two", "three"]) {
        assert_eq!(reading_of(&**cache, &a, &[key]).await, n);
        if n < 3 {
            cache.seal(&a, n).await.unwrap();
        }
    }
    // The third was begun, but nobody got as far as its seal.
    let keys = ["one", "two", "three"];
    let seen = cache.uploaded(&queue(), &keys).await.unwrap();
    assert_eq!(seen, [Uploaded::Pending, Uploaded::Pending, Uploaded::No]);
    cache.finish(&a, &[2], &[]).await.unwrap();
    cache.finish(&a, &[2], &[]).await.expect("a repeated finish has nothing left to do");
    assert_eq!(cache.uploaded(&queue(), &keys).await.unwrap(), [Uploaded::No, Uploaded::Yes, Uploaded::No]);
    assert_eq!(cache.seal(&waiting, waiting_reading).await.unwrap(), [rival(&a, 2)]);
    for (reading, marks) in [(1, &[][..]), (2, &[mark("two", "{}")]), (3, &[])] {
        assert_eq!(cache.rival_marks(&queue(), &rival(&a, reading), 0, 9).await.unwrap(), marks, "reading {reading}");
    }
    assert_eq!(cache.readings(&a).await.unwrap(), []);
}

async fn marks_of_a_rival_are_there_before_and_after_its_batch_is_finished(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 2).await;
    let a = claim_one(&**cache, "a").await;
    let reading = cache.begin_reading(&a, "").await.unwrap();
    let marks = [mark("tx:0", "a"), Mark::Untouched, mark("tx:1", "b"), Mark::Settled, Mark::Unsettled];
    cache.append_marks(&a, reading, 0, &marks).await.unwrap();
    cache.seal(&a, reading).await.unwrap();
    let known = rival(&a, reading);
    for finished in [false, true] {
        if finished {
            cache.finish(&a, &[reading], &[]).await.unwrap();
        }
        for (start, count) in [(0, 9), (0, 2), (1, 3), (4, 1), (5, 9), (0, 0), (0, u32::MAX)] {
            let all = (start + count as usize).min(marks.len());
            let expected = &marks[start.min(all)..all];
            let found = cache.rival_marks(&queue(), &known, start as u64, count).await.unwrap();
            assert_eq!(found, expected, "{count} from {start}, finished: {finished}");
        }
    }
    let unknown = Rival { reading: 7, ..known };
    assert_eq!(cache.rival_marks(&queue(), &unknown, 0, 9).await.unwrap(), []);
}

async fn a_key_is_uploaded_once_a_finished_batch_sent_it_and_pending_before(backend: Backend) {
    let cache = &backend.cache;
    fill(&**cache, 3).await;
    let keys = ["tx:0", "never", "tx:1", "tx:0"];
    let uploaded = async || cache.uploaded(&queue(), &keys).await.unwrap();
    use Uploaded::{No, Pending, Yes};
    assert_eq!(uploaded().await, [No; 4]);

    let a = claim_one(&**cache, "a").await;
    let reading_a = cache.begin_reading(&a, "").await.unwrap();
    cache.append_marks(&a, reading_a, 0, &[Mark::Settled, mark("tx:0", "{}")]).await.unwrap();
    assert_eq!(uploaded().await, [No; 4], "it is not sealed");
    cache.seal(&a, reading_a).await.unwrap();
    assert_eq!(uploaded().await, [Pending, No, No, Pending]);
    cache.release(&a, &[row("tx:0", "{\"n\":0}")], AfterUpload::Delete).await.unwrap();
    assert_eq!(uploaded().await, [Pending, No, No, Pending], "whether the batch is finished counts");

    // A younger batch has sent it as well.
    let b = claim_one(&**cache, "b").await;
    let reading_b = reading_of(&**cache, &b, &["tx:1", "tx:0"]).await;
    cache.seal(&b, reading_b).await.unwrap();
    cache.finish(&a, &[reading_a], &[]).await.unwrap();
    assert_eq!(uploaded().await, [Yes, No, Pending, Yes]);
    cache.finish(&b, &[reading_b], &[]).await.unwrap();
    assert_eq!(uploaded().await, [Yes, No, Yes, Yes]);
    assert_eq!(cache.uploaded(&queue(), &[]).await.unwrap(), []);

    // That redis ends them too is looked at where its TTLs are.
    if let Server::Sqlite { clock, .. } = &backend.server {
        let (c, reading_c) = begun(&**cache, "c").await;
        clock.advance(LONG * 2 - Duration::from_secs(1));
        assert_eq!(uploaded().await, [Yes, No, Yes, Yes]);
        clock.advance(Duration::from_secs(1));
        assert_eq!(uploaded().await, [No; 4]);
        assert_eq!(cache.rival_marks(&queue(), &rival(&a, reading_a), 0, 9).await.unwrap(), []);
        let heir = Lease { owner: "heir".to_owned(), ..c };
        assert!(cache.adopt(&heir).await.unwrap());
        assert_eq!(cache.seal(&heir, reading_c).await.unwrap(), []);
    }
}

async fn keys_are_found_behind_many_other_marks(backend: Backend) {
    // More than two pieces of those in which Redis is asked, and more than fit in one request.
    const STRETCH: usize = 20_000;
    let stretches = if matches!(backend.server, Server::Redis(_)) { 7 } else { 1 };
    let cache = &backend.cache;
    fill(&**cache, 1).await;
    let lease = claim_one(&**cache, "a").await;
    let reading = cache.begin_reading(&lease, "").await.unwrap();
    for start in (0..stretches * STRETCH).step_by(STRETCH) {
        let marks: Vec<Mark> = (start..start + STRETCH).map(|n| mark(&format!("tx:{n}"), "{}")).collect();
        cache.append_marks(&lease, reading, start as u64, &marks).await.unwrap();
    }
    cache.seal(&lease, reading).await.unwrap();
    // Around the places where a MiB of marks ends, at both ends, and one that is not there.
    let last = stretches * STRETCH - 1;
    let there = [0, 58_253, 58_254, 116_507, 116_508, last].map(|n| format!("tx:{}", n.min(last)));
    let mut keys: Vec<&str> = there.iter().map(String::as_str).collect();
    let nowhere = format!("tx:{}", last + 1);
    keys.push(&nowhere);
    for state in [Uploaded::Pending, Uploaded::Yes] {
        if state == Uploaded::Yes {
            cache.finish(&lease, &[reading], &[]).await.unwrap();
        }
        let found = cache.uploaded(&queue(), &keys).await.unwrap();
        assert_eq!((&found[..6], found[6]), (&[state; 6][..], Uploaded::No));
    }
}

async fn a_finish_during_the_search_hides_nothing(backend: Backend) {
    const BATCHES: usize = 60;
    let cache = &backend.cache;
    fill(&**cache, BATCHES).await;
    let mut sealed = Vec::new();
    for n in 0..BATCHES {
        let lease = claim_one(&**cache, "a").await;
        let reading = reading_of(&**cache, &lease, &[&format!("tx:{n}")]).await;
        cache.seal(&lease, reading).await.unwrap();
        sealed.push((lease, reading));
    }
    let keys: Vec<String> = (0..BATCHES).map(|n| format!("tx:{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let last = sealed.last().map(|(lease, reading)| rival(lease, *reading)).expect("there are some");
    let finisher = tokio::spawn({
        let cache = Arc::clone(cache);
        async move {
            for (lease, reading) in sealed {
                cache.finish(&lease, &[reading], &[]).await.unwrap();
            }
        }
    });
    // At least once after the last was finished.
    for over in std::iter::repeat_with(|| finisher.is_finished()) {
        let found = cache.uploaded(&queue(), &keys).await.unwrap();
        assert!(!found.contains(&Uploaded::No), "{found:?}");
        assert_eq!(cache.rival_marks(&queue(), &last, 0, 9).await.unwrap().len(), 1);
        if over {
            assert_eq!(found, [Uploaded::Yes; BATCHES]);
            break;
        }
    }
    finisher.await.unwrap();
}
