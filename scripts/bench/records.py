"""The benchmark's work: transactions and predictions as producer A of the wire contract leaves them in Redis.

Half the records are transactions in database 0, half predictions in database 1, each database with its own `upload_queue`.
The seed is fixed, so every run on every machine sends the same bytes.
"""

import random

import redis

SEED = 7
TTL_SECONDS = 604_800
QUEUE = "upload_queue"
CHUNK = 5_000

SCORES = ["poor", "fair", "good", "very_good", "excellent"]
AGES = ["18-24", "25-34", "35-44", "45-54", "55-64", "65+"]
DEVICES = ["mobile", "desktop", "tablet"]
CATEGORIES = ["electronics", "clothing", "home_garden", "sports", "beauty", "toys", "groceries", "travel"]
MODELS = ["ridge", "logistic", "elastic", "ensemble"]


def instant(dice, number):
    second = number % 86_400
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"2025-09-27T{clock}.{dice.randrange(1_000_000):06}"


def transaction(dice, number):
    at = instant(dice, number)
    body = (
        f'{{"transaction_id": "tx_{number:09}", "customer_id": "cust_{dice.randrange(10**7):07}", '
        f'"amount": {dice.randrange(500, 250_000) / 100}, "currency": "USD", "transaction_timestamp": "{at[:19]}Z", '
        f'"customer_credit_score_range": "{dice.choice(SCORES)}", "customer_age_bracket": "{dice.choice(AGES)}", '
        f'"customer_verification_level": "verified", "customer_tenure_days": {dice.randrange(4000)}, '
        f'"device_type": "{dice.choice(DEVICES)}", "device_trust_score": {dice.random():.6f}, '
        f'"device_fingerprint": "{dice.getrandbits(160):040x}", "session_id": "{dice.getrandbits(128):032x}", '
        f'"product_category": "{dice.choice(CATEGORIES)}", "product_risk_category": "low", '
        f'"product_id": "prod_{dice.randrange(10**6):06}", "merchant_id": "merch_{dice.randrange(10**5):05}", '
        f'"payment_provider": "bank_of_examples", "installment_count": {dice.choice([3, 4, 6, 12])}, '
        f'"first_payment_amount": {dice.randrange(500, 60_000) / 100}, "is_weekend": false, "hour": {int(at[11:13])}, '
        f'"billing_city": "Springfield", "shipping_matches_billing": true, "risk_scenario": "low_risk_purchase", '
        f'"_timestamp": "{at}"}}'
    )
    return f"tx:tx_{number:09}", body


def prediction(dice, number):
    at = instant(dice, number)
    scores = ", ".join(f'"{model}": {dice.random():.16f}' for model in MODELS)
    body = (
        f'{{"prediction_id": "pred_{number:09}", "transaction_id": "tx_{number:09}", '
        f'"customer_id": "cust_{dice.randrange(10**7):07}", "timestamp": "{at}", '
        f'"model_predictions": {{{scores}}}, "selected_model": "{dice.choice(MODELS)}", '
        f'"selected_prediction": {dice.random():.16f}, "business_decision": "{dice.choice(["approve", "deny"])}", '
        f'"risk_level": "{dice.choice(["LOW", "MEDIUM", "HIGH"])}", "decision_policy": "risk_thresholds_v2", '
        f'"risk_thresholds": {{"high": 0.65, "medium": 0.4}}, "experiment_id": "Ridge_vs_Logistic_Sept2025", '
        f'"traffic_segment": "champion", '
        f'"processing_time_ms": {dice.random() * 40:.12f}, "features_hash": "{dice.getrandbits(256):064x}", '
        f'"feature_count": 36, '
        f'"inference_ms": {dice.random() * 2:.12f}, "service_version": "2.4.1", "region": "us-west", '
        f'"request_id": "{dice.getrandbits(128):032x}", "model_version": "17", '
        f'"mlflow_run_id": "{dice.getrandbits(128):032x}", "prediction_timestamp": "{at}"}}'
    )
    return f"pred:pred_{number:09}", body


def fill(port, records):
    """Fills an empty Redis and returns the mean size of a record in bytes."""
    dice = random.Random(SEED)
    size = 0
    for database, make in ((0, transaction), (1, prediction)):
        client = redis.Redis(port=port, db=database)
        count = records // 2 if database else records - records // 2
        for start in range(0, count, CHUNK):
            pipe = client.pipeline(transaction=False)
            keys = []
            for number in range(start, min(start + CHUNK, count)):
                key, body = make(dice, number)
                pipe.setex(key, TTL_SECONDS, body)
                keys.append(key)
                size += len(body)
            pipe.lpush(QUEUE, *keys)
            pipe.execute()
        client.close()
    return size / max(records, 1)
