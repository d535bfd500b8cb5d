//! Which servers the environment names.

use super::*;

#[test]
fn nothing_set_means_everything_is_embedded() {
    let backends = backends(&[]);
    assert!(matches!(&backends.cache, CacheChoice::Sqlite { path } if path == Path::new("data/cache.db")));
    assert!(matches!(&backends.history, HistoryChoice::Sqlite { path } if path == Path::new("data/history.db")));
    assert!(matches!(&backends.warehouse, WarehouseChoice::Sqlite { path } if path == Path::new("data/warehouse.db")));
    assert_eq!((backends.port, backends.log.as_str(), backends.on_railway), (None, "info", false));
}

#[test]
fn redis_comes_from_its_url_or_its_parts() {
    let parts = [("REDIS_HOST", "r.example"), ("REDIS_PORT", "6380"), ("REDIS_DB", "3"), ("REDIS_PASSWORD", "a@b:c/d")];
    assert_eq!(redis_url(&parts), ("redis://:a%40b%3Ac%2Fd@r.example:6380/3".to_owned(), 3));
    let railway = [
        ("REDIS_URL", "redis://default:pw%2B@redis.railway.internal:6379"),
        ("REDISHOST", "redis.railway.internal"),
        ("REDISPORT", "6379"),
        ("REDISUSER", "default"),
        ("REDISPASSWORD", "pw+"),
    ];
    assert_eq!(redis_url(&railway), ("redis://default:pw%2B@redis.railway.internal:6379".to_owned(), 0));
    let ampersand = [("REDIS_URL", "redis://:a&b%3D@localhost:6379"), ("REDIS_PASSWORD", "a&b=")];
    assert_eq!(redis_url(&ampersand).0, ampersand[0].1);
    let filled = [("REDIS_URL", "redis://localhost:6380"), ("REDIS_PASSWORD", "pw"), ("REDIS_DB", "2")];
    assert_eq!(redis_url(&filled), ("redis://:pw@localhost:6380/2".to_owned(), 2));
    let settings = good(PLAIN, &[("REDIS_URL", "redis://localhost/4")]);
    assert_eq!(
        settings.datasets["transactions"].database, 4,
        "a dataset that names no database is where REDIS_URL points"
    );
}

#[test]
fn variables_that_disagree_stop_the_start_with_both_names() {
    let url = ("REDIS_URL", "redis://u:pw@localhost:6379/1");
    for (variables, names) in [
        (&[url, ("REDIS_HOST", "other")][..], ["REDIS_URL", "REDIS_HOST"]),
        (&[url, ("REDIS_PORT", "6380")], ["REDIS_URL", "REDIS_PORT"]),
        (&[url, ("REDIS_DB", "2")], ["REDIS_URL", "REDIS_DB"]),
        (&[url, ("REDIS_USERNAME", "w")], ["REDIS_URL", "REDIS_USERNAME"]),
        (&[url, ("REDISPASSWORD", "other")], ["REDIS_URL", "REDISPASSWORD"]),
        (&[("REDIS_HOST", "a"), ("REDISHOST", "b"), ("REDIS_PORT", "1")], ["REDIS_HOST", "REDISHOST"]),
        (
            &[
                ("BIGQUERY_PROJECT", "p"),
                ("GOOGLE_APPLICATION_CREDENTIALS", "{\"type\": \"a\"}"),
                ("GOOGLE_CREDENTIALS_JSON", "{\"type\": \"b\"}"),
            ],
            ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS_JSON"],
        ),
    ] {
        let shown = bad_backends(variables);
        assert!(shown.contains(&format!("{} and {} disagree", names[0], names[1])), "{shown}");
    }
    let problems =
        problems(PLAIN, &[("LAMPLIGHTER__DEFAULTS__TIMEOUT", "1m"), ("lamplighter__defaults__timeout", "2m")]);
    assert!(
        problems.to_string().contains("LAMPLIGHTER__DEFAULTS__TIMEOUT and lamplighter__defaults__timeout disagree")
    );
}

#[test]
fn what_is_wrong_with_the_servers_variables_is_said_with_its_cure() {
    let shown = bad_backends(&[
        ("REDIS_URL", "localhost:6379"),
        ("DATABASE_URL", "mysql://db.example/x"),
        ("BIGQUERY_PROJECT", "My Project"),
        ("GOOGLE_CREDENTIALS_JSON", "{}"),
        ("PORT", "http"),
        ("LAMPLIGHTER_LOG", "info,lamplighter=lots"),
        ("REDIS_PASSWORD_FILE", "/nonexistent/password"),
    ]);
    insta::assert_snapshot!(shown);
    assert!(bad_backends(&[("REDIS_HOST", "x")]).contains("REDIS_PORT"), "no port is assumed");
    assert!(bad_backends(&[("BIGQUERY_EMULATOR_HOST", "http://x:1")]).contains("BIGQUERY_PROJECT"));
}

#[test]
fn google_credentials_come_as_a_file_as_json_or_as_base64() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    let key = "{\"type\": \"service_account\", \"private_key\": \"-----BEGIN\\nabc\\n-----END\\n\"}";
    fs::write(&file, key).unwrap();
    let of = |variables: &[(&str, &str)]| {
        let all = [&[("BIGQUERY_PROJECT", "p"), ("BIGQUERY_LOCATION", "EU")], variables].concat();
        match backends(&all).warehouse {
            WarehouseChoice::BigQuery { credentials, .. } => credentials,
            WarehouseChoice::Sqlite { .. } => panic!("BigQuery should be chosen"),
        }
    };
    let private_key = |credentials: GoogleCredentials| match credentials {
        GoogleCredentials::Json(json) => {
            let json: serde_json::Value = serde_json::from_str(json.expose_secret()).unwrap();
            json["private_key"].as_str().unwrap().to_owned()
        }
        other => panic!("JSON was expected, not {other:?}"),
    };
    let packed = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key);
    let path = file.to_str().unwrap();
    assert!(matches!(of(&[]), GoogleCredentials::ApplicationDefault));
    assert!(matches!(of(&[("BIGQUERY_EMULATOR_HOST", "localhost:1")]), GoogleCredentials::None));
    assert!(matches!(of(&[("GOOGLE_APPLICATION_CREDENTIALS", path)]), GoogleCredentials::File(found) if found == file));
    // The last two are what shells and web forms make of the line breaks.
    for value in [key, &packed, &key.replace("\\n", "\n"), &key.replace("\\n", "\\\\n")] {
        for name in ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS_JSON"] {
            assert_eq!(private_key(of(&[(name, value)])), "-----BEGIN\nabc\n-----END\n", "{name}={value}");
        }
    }
    assert_eq!(private_key(of(&[("GOOGLE_CREDENTIALS_JSON_FILE", path)])), "-----BEGIN\nabc\n-----END\n");
    of(&[("GOOGLE_APPLICATION_CREDENTIALS", path), ("GOOGLE_CREDENTIALS_JSON", key)]);
}

#[test]
fn a_secret_can_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "from-file\n").unwrap();
    let path = file.to_str().unwrap();
    let variables = [("REDIS_URL", "redis://localhost"), ("REDIS_PASSWORD_FILE", path)];
    assert_eq!(redis_url(&variables).0, "redis://:from-file@localhost");
    let shown = bad_backends(&[variables[0], variables[1], ("REDIS_PASSWORD", "other")]);
    assert!(shown.contains("REDIS_PASSWORD and REDIS_PASSWORD_FILE disagree"), "{shown}");
}

#[test]
fn railway_is_told_what_its_next_deploy_would_lose() {
    let railway = ("RAILWAY_ENVIRONMENT", "production");
    let warnings = good(PLAIN, &[railway]).warnings(noon());
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    let proxied = ("REDIS_URL", "redis://:pw@x.proxy.rlwy.net:1234");
    let warnings = good(PLAIN, &[railway, proxied]).warnings(noon());
    assert!(warnings.iter().any(|warning| warning.contains("public proxy")), "{warnings:?}");
}
