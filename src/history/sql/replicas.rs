//! The daemons that are up.

use std::time::Duration;

use super::{Columns, Session, later};

pub(super) async fn check_in<S: Session>(s: &mut S, owner: &str, lease: Duration) -> Result<Vec<String>, sqlx::Error> {
    let now = s.now().await?;
    s.query(
        "INSERT INTO replicas (owner, lease_until) VALUES ($1, $2) \
         ON CONFLICT (owner) DO UPDATE SET lease_until = excluded.lease_until",
        &[owner.into(), later(now, lease).into()],
    )
    .await?;
    // Those that are just being renewed or removed are stepped over, so that no two wait for each other.
    let silent = format!(
        "DELETE FROM replicas WHERE owner IN (SELECT owner FROM replicas WHERE lease_until <= $1 AND owner <> $2 {})",
        S::LOCK_FREE
    );
    s.query(&silent, &[now.into(), owner.into()]).await?;
    let up = s.query("SELECT owner FROM replicas WHERE lease_until > $1 ORDER BY owner", &[now.into()]).await?;
    up.iter().map(|row| row.text("owner")).collect()
}

pub(super) async fn check_out<S: Session>(s: &mut S, owner: &str) -> Result<(), sqlx::Error> {
    s.query("DELETE FROM replicas WHERE owner = $1", &[owner.into()]).await.map(drop)
}
