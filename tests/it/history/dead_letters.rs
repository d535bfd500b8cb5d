//! Dead letters.

use lamplighter::history::{DeadLetter, DeadLetterCount, DeadLetterFilter};

use super::{Bench, at, new_id, on_both};

on_both![
    a_dead_letter_is_kept_byte_for_byte,
    a_dead_letter_that_is_kept_already_is_left_as_it_is,
    dead_letters_are_paged_and_filtered,
    dead_letters_are_counted_by_dataset_and_reason,
    dropped_dead_letters_are_gone,
    many_and_large_dead_letters_go_in_at_once,
];

fn letter(key: &str) -> DeadLetter {
    DeadLetter {
        id: new_id(),
        dataset: "predictions".to_owned(),
        database: 1,
        queue: "upload_queue".to_owned(),
        batch: "01KB20DT00BATCH00000000001".to_owned(),
        entry: key.as_bytes().to_vec(),
        key: key.to_owned(),
        reason: "not_json".to_owned(),
        detail: "expected value at line 1 column 1".to_owned(),
        body: Some(b"NaN".to_vec()),
        size_bytes: Some(3),
        created_at: at("2025-11-27T02:00:03.000123Z"),
    }
}

fn everything() -> DeadLetterFilter {
    DeadLetterFilter { limit: 100_000, ..DeadLetterFilter::default() }
}

async fn a_dead_letter_is_kept_byte_for_byte(bench: Bench) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let odd = DeadLetter { entry: every_byte.clone(), body: Some(every_byte), size_bytes: Some(256), ..letter("odd") };
    let gone = DeadLetter { body: None, size_bytes: None, reason: "missing".to_owned(), ..letter("gone") };
    let empty = DeadLetter { body: Some(vec![]), entry: vec![], size_bytes: Some(0), ..letter("") };
    let letters = [odd, gone, empty];
    bench.history.add_dead_letters(&letters).await.unwrap();
    for letter in &letters {
        assert_eq!(bench.history.dead_letter(&letter.id).await.unwrap().as_ref(), Some(letter));
    }
    assert_eq!(bench.history.dead_letter("01NOBODYHASTHISID000000000").await.unwrap(), None);
    let listed = bench.history.dead_letters(&everything()).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|letter| letter.body.is_none()), "lists leave bodies out");
    assert!(listed.iter().any(|letter| letter.size_bytes == Some(256)), "but say how large they are");
}

async fn a_dead_letter_that_is_kept_already_is_left_as_it_is(bench: Bench) {
    let first = letter("pred:1");
    bench.history.add_dead_letters(std::slice::from_ref(&first)).await.unwrap();
    let again = DeadLetter { id: new_id(), detail: "another".to_owned(), ..first.clone() };
    let next_batch = DeadLetter { id: new_id(), batch: "01KB20DT00BATCH00000000002".to_owned(), ..first.clone() };
    // The same bytes, cut between entry and key in another place.
    let shifted = DeadLetter { id: new_id(), entry: b"pred:".to_vec(), key: "1pred:1".to_owned(), ..first.clone() };
    for _ in 0..2 {
        let letters = [first.clone(), again.clone(), next_batch.clone(), shifted.clone()];
        bench.history.add_dead_letters(&letters).await.unwrap();
    }
    let mut ids: Vec<_> =
        bench.history.dead_letters(&everything()).await.unwrap().into_iter().map(|letter| letter.id).collect();
    ids.sort();
    let mut expected = vec![first.id.clone(), next_batch.id, shifted.id];
    expected.sort();
    assert_eq!(ids, expected);
    assert_eq!(bench.history.dead_letter(&first.id).await.unwrap().unwrap().detail, first.detail);
}

async fn dead_letters_are_paged_and_filtered(bench: Bench) {
    let mut letters: Vec<DeadLetter> = (0..25).map(|i| letter(&format!("pred:{i}"))).collect();
    for (i, letter) in letters.iter_mut().enumerate() {
        letter.id = format!("01KB20DT00000000000000{i:04}");
        if i % 5 == 0 {
            letter.dataset = "transactions".to_owned();
        }
        if i % 2 == 0 {
            letter.reason = "schema".to_owned();
        }
    }
    bench.history.add_dead_letters(&letters).await.unwrap();
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let filter = DeadLetterFilter { after: after.clone(), limit: 10, ..DeadLetterFilter::default() };
        let page = bench.history.dead_letters(&filter).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        pages.push(page);
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 5]);
    let ids: Vec<_> = pages.into_iter().flatten().map(|letter| letter.id).collect();
    assert_eq!(ids, letters.iter().map(|letter| letter.id.clone()).collect::<Vec<_>>(), "oldest first, none twice");
    let filter = DeadLetterFilter {
        dataset: Some("transactions".to_owned()),
        reason: Some("schema".to_owned()),
        ..everything()
    };
    let keys: Vec<_> =
        bench.history.dead_letters(&filter).await.unwrap().into_iter().map(|letter| letter.key).collect();
    assert_eq!(keys, ["pred:0", "pred:10", "pred:20"]);
}

async fn dead_letters_are_counted_by_dataset_and_reason(bench: Bench) {
    let older = DeadLetter { created_at: at("2025-11-26T02:00:00Z"), ..letter("a") };
    let nobodys = DeadLetter { dataset: String::new(), reason: "no_dataset".to_owned(), ..letter("b") };
    bench.history.add_dead_letters(&[letter("c"), older.clone(), nobodys.clone()]).await.unwrap();
    let expected = [
        DeadLetterCount { dataset: String::new(), reason: nobodys.reason, count: 1, oldest: nobodys.created_at },
        DeadLetterCount { dataset: older.dataset, reason: older.reason, count: 2, oldest: older.created_at },
    ];
    assert_eq!(bench.history.count_dead_letters().await.unwrap(), expected);
}

async fn dropped_dead_letters_are_gone(bench: Bench) {
    let letters = [letter("a"), letter("b"), letter("c")];
    bench.history.add_dead_letters(&letters).await.unwrap();
    let drop = vec![letters[0].id.clone(), letters[2].id.clone(), "01NOBODYHASTHISID000000000".to_owned()];
    assert_eq!(bench.history.drop_dead_letters(&drop).await.unwrap(), 2);
    assert_eq!(bench.history.drop_dead_letters(&drop).await.unwrap(), 0);
    let keys: Vec<_> =
        bench.history.dead_letters(&everything()).await.unwrap().into_iter().map(|letter| letter.key).collect();
    assert_eq!(keys, ["b"]);
}

async fn many_and_large_dead_letters_go_in_at_once(bench: Bench) {
    let mut letters: Vec<DeadLetter> = (0..5_000).map(|i| letter(&format!("pred:{i}"))).collect();
    for (i, letter) in letters.iter_mut().take(6).enumerate() {
        letter.body = Some(vec![b'x'; i << 20]);
        letter.size_bytes = Some((i << 20) as u64);
    }
    // Longer than an index entry may be.
    letters[6].entry = vec![b'{'; 100_000];
    letters[6].key = "k".repeat(100_000);
    bench.history.add_dead_letters(&letters).await.unwrap();
    assert_eq!(bench.history.dead_letters(&everything()).await.unwrap().len(), 5_000);
    let large = bench.history.dead_letter(&letters[5].id).await.unwrap().unwrap();
    assert_eq!(large.body.unwrap().len(), 5 << 20);
    let ids: Vec<String> = letters.into_iter().map(|letter| letter.id).collect();
    assert_eq!(bench.history.drop_dead_letters(&ids).await.unwrap(), 5_000);
}
