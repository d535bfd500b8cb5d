//! A believable day of two producers, always the same one, with a few records that something is wrong with.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::cache::{Produced, QueueRef};

/// Transactions and predictions of each producer; together 5,000 of each.
const PLAIN: usize = 4_000;
const ENVELOPED: usize = 1_000;

/// The same day every time.
const SEED: u64 = 0x1a4b_11e7;

const WEEK: Duration = Duration::from_secs(604_800);
const MONTH: Duration = Duration::from_secs(2_592_000);

/// What the producers wrote.
pub(super) struct Day {
    /// The data platform's transactions: bare keys in database 0.
    transactions: Vec<Produced>,
    /// The data platform's predictions: bare keys in database 1.
    predictions: Vec<Produced>,
    /// The scoring service's transactions and predictions: JSON envelopes in database 0.
    scoring: Vec<Produced>,
    broken: usize,
}

impl Day {
    /// The day that ends at `end`.
    pub(super) fn ending(end: DateTime<Utc>) -> Self {
        let mut rng = fastrand::Rng::with_seed(SEED);
        let mut day = Self { transactions: Vec::new(), predictions: Vec::new(), scoring: Vec::new(), broken: 0 };
        let total = PLAIN + ENVELOPED;
        for number in 0..total {
            let at = end - TimeDelta::milliseconds((86_400_000 / total * (total - number)) as i64);
            let purchase = Purchase::new(&mut rng, number, at);
            if number % 5 == 4 {
                day.scoring.push(enveloped("transaction", &purchase, purchase.transaction("timestamp")));
                day.scoring.push(enveloped("prediction", &purchase, purchase.scored(&mut rng)));
            } else {
                let key = format!("tx:{}", purchase.transaction_id);
                day.transactions.push(plain(key, purchase.transaction("_timestamp").to_string()));
                let key = format!("pred:{}", purchase.prediction_id);
                day.predictions.push(plain(key, purchase.predicted().to_string()));
            }
        }
        day.break_some(end);
        day
    }

    /// What goes wrong on any day, one of each.
    fn break_some(&mut self, end: DateTime<Utc>) {
        let mut rng = fastrand::Rng::with_seed(SEED + 1);
        let mut next = 900_000;
        let mut purchase = || {
            next += 1;
            Purchase::new(&mut rng, next, end - TimeDelta::minutes(5))
        };
        // Cut off in the middle: the producer was killed while it wrote.
        let torn = purchase();
        let text = torn.transaction("_timestamp").to_string();
        let torn = plain(format!("tx:{}", torn.transaction_id), text[..text.len() / 2].to_owned());
        // A list, where a record was meant.
        let list = purchase();
        let list = plain(format!("tx:{}", list.transaction_id), json!([list.transaction("_timestamp")]).to_string());
        // SETEX and LPUSH are two commands: here only the second arrived.
        let gone = format!("tx:{}", purchase().transaction_id);
        let gone = Produced { entry: gone.clone().into_bytes(), key: gone, value: None };
        // No time, so no partition.
        let timeless = purchase();
        let mut record = timeless.transaction("_timestamp");
        record.as_object_mut().expect("a transaction is an object").remove("_timestamp");
        let timeless = plain(format!("tx:{}", timeless.transaction_id), record.to_string());
        // A key that no dataset claims.
        let stranger = plain("customer:4711".to_owned(), json!({ "name": "somebody" }).to_string());
        self.transactions.extend([torn, list, gone, timeless, stranger]);

        // Words where a time is meant.
        let wordy = purchase();
        let mut record = wordy.predicted();
        record["prediction_timestamp"] = json!("last night");
        self.predictions.push(plain(format!("pred:{}", wordy.prediction_id), record.to_string()));
        // An envelope without a key.
        self.scoring.push(Produced {
            entry: json!({ "type": "prediction", "prediction_id": "pred_lost" }).to_string().into_bytes(),
            key: String::new(),
            value: None,
        });
        self.broken = 7;

        // Not broken: Python writes NaN, which JSON does not know; it becomes null.
        let nan = purchase();
        let text = nan
            .predicted()
            .to_string()
            .replace("\"processing_time_ms\":", "\"confidence\":NaN,\"processing_time_ms\":");
        self.predictions.push(plain(format!("pred:{}", nan.prediction_id), text));
        // Not broken either: queued twice, and uploaded once.
        if let Some(first) = self.transactions.first().cloned() {
            self.transactions.push(first);
        }
    }

    /// The records by their queue, with how long they live.
    pub(super) fn by_queue(&self) -> [(QueueRef, &[Produced], Duration); 3] {
        let queue = |database, name: &str| QueueRef { database, queue: name.to_owned() };
        [
            (queue(0, "upload_queue"), &self.transactions, WEEK),
            (queue(1, "upload_queue"), &self.predictions, WEEK),
            (queue(0, "ml_prediction_upload_queue"), &self.scoring, MONTH),
        ]
    }

    /// What there is, a line each.
    pub(super) fn summary(&self) -> Vec<String> {
        let number = |n: usize| super::super::times::number(n as u64);
        vec![
            format!("{} transactions as bare keys in upload_queue (database 0)", number(PLAIN)),
            format!("{} predictions as bare keys in upload_queue (database 1)", number(PLAIN)),
            format!("{} of each as JSON envelopes in ml_prediction_upload_queue", number(ENVELOPED)),
            format!("{} broken ones among them, a record with NaN in it, and one that is queued twice", self.broken),
        ]
    }
}

/// Somebody buys something, and the models say whether they will pay.
struct Purchase {
    transaction_id: String,
    prediction_id: String,
    customer_id: String,
    at: DateTime<Utc>,
    amount: f64,
    score: f64,
    range: &'static str,
    age: &'static str,
    device: &'static str,
    category: &'static str,
    took_ms: f64,
}

impl Purchase {
    fn new(rng: &mut fastrand::Rng, number: usize, at: DateTime<Utc>) -> Self {
        // Most purchases are small: the square of an even spread.
        let amount = 10.0 + 1_490.0 * rng.f64().powi(2);
        let quality = rng.f64();
        let range = match quality {
            ..0.1 => "poor",
            0.1..0.3 => "fair",
            0.3..0.7 => "good",
            _ => "excellent",
        };
        let score = ((1.0 - quality) * 0.55 + amount / 1_500.0 * 0.2 + rng.f64() * 0.15).clamp(0.01, 0.97);
        Self {
            transaction_id: format!("tx_{number:06}"),
            prediction_id: format!("pred_{number:06}"),
            customer_id: format!("cust_{:05}", rng.u32(0..3_000)),
            at,
            amount: (amount * 100.0).round() / 100.0,
            score: thousandths(score),
            range,
            age: pick(rng, &["18-24", "25-34", "35-44", "45-54", "55+"]),
            device: pick(rng, &["mobile", "mobile", "mobile", "desktop", "tablet"]),
            category: pick(rng, &["electronics", "clothing", "home_garden", "sports", "beauty", "books"]),
            took_ms: (120.0 + 180.0 * rng.f64()).round() / 10.0,
        }
    }

    fn transaction(&self, time_field: &str) -> Value {
        let mut record = json!({
            "transaction_id": self.transaction_id,
            "customer_id": self.customer_id,
            "amount": self.amount,
            "transaction_timestamp": self.at.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "customer_credit_score_range": self.range,
            "customer_age_bracket": self.age,
            "device_type": self.device,
            "product_category": self.category,
        });
        record[time_field] = json!(self.naive());
        record
    }

    fn predicted(&self) -> Value {
        json!({
            "prediction_id": self.prediction_id,
            "transaction_id": self.transaction_id,
            "customer_id": self.customer_id,
            "model_predictions": self.models(),
            "selected_model": "ridge",
            "selected_prediction": self.score,
            "business_decision": self.decision(),
            "risk_level": self.risk(),
            "processing_time_ms": self.took_ms,
            "prediction_timestamp": self.naive(),
        })
    }

    fn scored(&self, rng: &mut fastrand::Rng) -> Value {
        let (segment, model) = if rng.f64() < 0.7 { ("champion", "ridge") } else { ("challenger", "logistic") };
        json!({
            "prediction_id": self.prediction_id,
            "transaction_id": self.transaction_id,
            "customer_id": self.customer_id,
            "timestamp": self.naive(),
            "model_predictions": self.models(),
            "selected_model": model,
            "selected_prediction": self.models()[model],
            "business_decision": self.decision(),
            "risk_level": self.risk(),
            "decision_policy": "threshold_v2",
            "risk_thresholds": { "high": 0.5, "medium": 0.3 },
            "experiment_id": "exp_2026_11",
            "experiment_name": "Ridge_vs_Logistic",
            "traffic_segment": segment,
            "processing_time_ms": self.took_ms,
            "features_hash": format!("{:016x}", rng.u64(..)),
            "model_version": "2.4.1",
            "mlflow_run_id": "6f1c0d9be2a84b0fa7",
        })
    }

    fn models(&self) -> Value {
        let near = |by: f64| thousandths((self.score + by).clamp(0.0, 1.0));
        json!({ "ridge": self.score, "logistic": near(0.017), "elastic": near(0.006), "ensemble": near(0.008) })
    }

    fn decision(&self) -> &'static str {
        match self.score {
            ..0.3 => "approve",
            0.3..0.5 => "manual_review",
            _ => "deny",
        }
    }

    fn risk(&self) -> &'static str {
        match self.score {
            ..0.3 => "LOW",
            0.3..0.5 => "MEDIUM",
            _ => "HIGH",
        }
    }

    /// As Python's `datetime.utcnow().isoformat()` writes it: without a zone.
    fn naive(&self) -> String {
        self.at.naive_utc().format("%Y-%m-%dT%H:%M:%S%.6f").to_string()
    }
}

fn plain(key: String, value: String) -> Produced {
    Produced { entry: key.clone().into_bytes(), key, value: Some(value.into_bytes()) }
}

fn enveloped(kind: &str, purchase: &Purchase, record: Value) -> Produced {
    let (short, field, id) = match kind {
        "prediction" => ("pred", "prediction_id", &purchase.prediction_id),
        _ => ("tx", "transaction_id", &purchase.transaction_id),
    };
    let key = format!("ml:bnpl:{short}:{id}");
    let mut envelope = json!({ "type": kind, "key": key, "timestamp": purchase.naive() });
    envelope[field] = json!(id);
    if kind == "prediction" {
        envelope["experiment_id"] = record["experiment_id"].clone();
    }
    Produced { entry: envelope.to_string().into_bytes(), key, value: Some(record.to_string().into_bytes()) }
}

fn pick(rng: &mut fastrand::Rng, choices: &[&'static str]) -> &'static str {
    choices[rng.usize(0..choices.len())]
}

fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_the_same_every_time_and_has_what_it_says() {
        let end = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let (one, other) = (Day::ending(end), Day::ending(end));
        let bytes = |day: &Day| day.by_queue().iter().map(|(_, records, _)| format!("{records:?}")).collect::<String>();
        assert_eq!(bytes(&one), bytes(&other));
        // Five broken ones and one twin; one broken and one NaN; one broken.
        let counts = one.by_queue().map(|(_, records, _)| records.len());
        assert_eq!(counts, [PLAIN + 6, PLAIN + 2, 2 * ENVELOPED + 1]);
    }
}
