//! Jobs and runs: claims, leases and lists.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::values::{int, json_text, maybe_text, text, time};
use super::{Cells, Column, Columns, Session, Value, alerts, clip, later};
use crate::history::{AlertChange, Claim, JobRow, NewRun, Run, RunEnd, RunFilter, RunState};

const RUN: &str = "id, job, slot, attempt, trigger, state, cause, slots, owner, host, version, created_at, started_at, \
                   finished_at, duration_ms, rows, error, findings";

fn run(row: &impl Columns) -> Result<Run, sqlx::Error> {
    Ok(Run {
        id: row.text("id")?,
        job: row.text("job")?,
        slot: row.maybe_time("slot")?,
        attempt: row.number("attempt")?,
        trigger: row.word("trigger")?,
        state: row.word("state")?,
        cause: row.maybe_word("cause")?,
        slots: row.number("slots")?,
        owner: row.text("owner")?,
        host: row.text("host")?,
        version: row.text("version")?,
        created_at: row.time("created_at")?,
        started_at: row.maybe_time("started_at")?,
        finished_at: row.maybe_time("finished_at")?,
        duration_ms: row.maybe_number("duration_ms")?,
        rows: row.maybe_number("rows")?,
        error: row.maybe_text("error")?,
        findings: row.json("findings")?,
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) async fn sync_jobs<S: Session>(s: &mut S, jobs: &[JobRow]) -> Result<(), sqlx::Error> {
    let now = s.now().await?;
    // All rows are locked first, by name, so that two daemons that start at once take turns.
    let jobs: BTreeMap<&str, &JobRow> = jobs.iter().map(|job| (job.name.as_str(), job)).collect();
    let known = format!("SELECT name FROM jobs ORDER BY name {}", S::LOCK);
    let known = s.query(&known, &[]).await?;
    let known = known.iter().map(|row| row.text("name")).collect::<Result<Vec<_>, _>>()?;
    let gone: Vec<&String> = known.iter().filter(|name| !jobs.contains_key(name.as_str())).collect();
    s.given(
        &[text("name", &gone, |name| name), time("now", &gone, |_| Some(now))],
        "UPDATE jobs SET retired_at = given.now FROM given WHERE jobs.name = given.name AND retired_at IS NULL",
    )
    .await?;
    s.given(
        &[
            text("name", jobs.values(), |job| &job.name),
            text("kind", jobs.values(), |job| &job.kind),
            maybe_text("schedule", jobs.values(), |job| job.schedule.as_deref()),
            text("timezone", jobs.values(), |job| &job.timezone),
        ],
        "INSERT INTO jobs (name, kind, schedule, timezone) SELECT name, kind, schedule, timezone FROM given WHERE true \
         ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, schedule = excluded.schedule, \
         timezone = excluded.timezone, retired_at = NULL",
    )
    .await?;
    Ok(())
}

pub(super) async fn claim<S: Session>(s: &mut S, runs: &[NewRun]) -> Result<Vec<Claim>, sqlx::Error> {
    /// A run that is in the way may end before we ask which one it is; then its place is free, and we claim again.
    const ROUNDS: usize = 5;

    let now = s.now().await?;
    let mut answers: HashMap<String, Claim> = HashMap::with_capacity(runs.len());
    // In one order everywhere, so that replicas that claim the same slots at once wait for each other, not in a circle.
    let mut open: Vec<&NewRun> = runs.iter().collect();
    open.sort_by_key(|run| (&run.job, run.slot, run.attempt));
    for _ in 0..ROUNDS {
        let won = insert_running(s, now, &open).await?;
        answers.extend(won.into_iter().map(|id| (id, Claim::Won)));
        open.retain(|run| !answers.contains_key(&run.id));
        if !open.is_empty() {
            answers.extend(find_holders(s, &open).await?);
            open.retain(|run| !answers.contains_key(&run.id));
        }
        if open.is_empty() {
            return Ok(runs.iter().map(|run| answers[&run.id].clone()).collect());
        }
    }
    Err(sqlx::Error::Io(std::io::Error::other(format!("other runs of {} began and ended too fast", open[0].job))))
}

/// Inserts the runs that nothing is in the way of, and returns their ids.
async fn insert_running<S: Session>(
    s: &mut S,
    now: DateTime<Utc>,
    runs: &[&NewRun],
) -> Result<Vec<String>, sqlx::Error> {
    let rows = s
        .given(
            &[
                text("id", runs, |run| &run.id),
                text("job", runs, |run| &run.job),
                time("slot", runs, |run| run.slot),
                int("attempt", runs, |run| Some(run.attempt.into())),
                text("trigger", runs, |run| run.trigger.as_str()),
                Column { name: "exclusive", cells: Cells::Flag(runs.iter().map(|run| run.exclusive).collect()) },
                text("owner", runs, |run| &run.owner),
                text("host", runs, |run| &run.host),
                text("version", runs, |run| &run.version),
                time("lease_until", runs, |run| Some(later(now, run.lease))),
                time("created_at", runs, |_| Some(now)),
                time("started_at", runs, |run| Some(run.started_at)),
            ],
            "INSERT INTO job_runs (id, job, slot, attempt, trigger, state, slots, exclusive, owner, host, version, \
             lease_until, created_at, started_at, findings) \
             SELECT id, job, slot, attempt, trigger, 'running', 1, exclusive, owner, host, version, \
             lease_until, created_at, started_at, '[]' FROM given WHERE true \
             ON CONFLICT DO NOTHING RETURNING id",
        )
        .await?;
    rows.iter().map(|row| row.text("id")).collect()
}

/// Says what is in the way of runs that could not be inserted.
async fn find_holders<S: Session>(s: &mut S, runs: &[&NewRun]) -> Result<HashMap<String, Claim>, sqlx::Error> {
    let rows = s
        .given(
            &[
                text("id", runs, |run| &run.id),
                text("job", runs, |run| &run.job),
                time("slot", runs, |run| run.slot),
                int("attempt", runs, |run| Some(run.attempt.into())),
                text("owner", runs, |run| &run.owner),
            ],
            // CROSS JOIN makes SQLite go through what is given and look each up by its index, never the other way round.
            // The first kind is a claim that we won, but whose answer got lost on the way, so that it was asked again.
            "SELECT given.id AS claim, run.id AS holder, CASE WHEN run.state = 'running' AND run.owner = given.owner \
               THEN 'won' ELSE 'taken' END AS answer FROM given CROSS JOIN job_runs run WHERE run.id = given.id \
             UNION ALL SELECT given.id, run.id, 'taken' FROM given CROSS JOIN job_runs run WHERE run.job = given.job \
               AND run.slot = given.slot AND run.slot IS NOT NULL AND run.attempt = given.attempt \
             UNION ALL SELECT given.id, run.id, 'busy' FROM given CROSS JOIN job_runs run WHERE run.job = given.job \
               AND run.state = 'running' AND run.exclusive",
        )
        .await?;
    let mut answers = HashMap::with_capacity(runs.len());
    for row in &rows {
        let claim = row.text("claim")?;
        match row.text("answer")?.as_str() {
            "won" => _ = answers.insert(claim, Claim::Won),
            "taken" if answers.get(&claim) != Some(&Claim::Won) => _ = answers.insert(claim, Claim::Taken),
            "busy" => _ = answers.entry(claim).or_insert(Claim::Busy(row.text("holder")?)),
            _ => {}
        }
    }
    Ok(answers)
}

pub(super) async fn heartbeat<S: Session>(s: &mut S, owner: &str, lease: Duration) -> Result<Vec<String>, sqlx::Error> {
    let now = s.now().await?;
    let held = s
        .query(
            "UPDATE job_runs SET lease_until = $1 WHERE owner = $2 AND state = 'running' AND lease_until > $3 RETURNING id",
            &[later(now, lease).into(), owner.into(), now.into()],
        )
        .await?;
    held.iter().map(|row| row.text("id")).collect()
}

pub(super) async fn reap<S: Session>(s: &mut S) -> Result<Vec<Run>, sqlx::Error> {
    let now = s.now().await?;
    let sql = format!(
        "WITH ended AS MATERIALIZED (SELECT id AS ended_id FROM job_runs WHERE state = 'running' AND lease_until <= $1 \
         {}) UPDATE job_runs SET state = 'lost', finished_at = $1, lease_until = NULL, \
         error = 'its process stopped renewing the claim: it died, hung, or lost the database' \
         FROM ended WHERE id = ended_id AND state = 'running' RETURNING {RUN}",
        S::LOCK_FREE
    );
    let mut lost = s.query(&sql, &[now.into()]).await?.iter().map(run).collect::<Result<Vec<_>, _>>()?;
    lost.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(lost)
}

pub(super) async fn finish<S: Session>(
    s: &mut S,
    id: &str,
    end: &RunEnd,
    changes: &[AlertChange],
) -> Result<bool, sqlx::Error> {
    let duration_ms = (end.finished_at - end.started_at).num_milliseconds().max(0);
    let ended = s
        .query(
            "UPDATE job_runs SET state = $2, started_at = $3, finished_at = $4, duration_ms = $5, rows = $6, error = $7, \
             findings = $8, lease_until = NULL WHERE id = $1 AND state = 'running' RETURNING id",
            &[
                id.into(),
                end.state.as_str().into(),
                end.started_at.into(),
                end.finished_at.into(),
                duration_ms.into(),
                end.rows.map(signed).into(),
                end.error.as_deref().map(clip).into(),
                Value::json(&end.findings),
            ],
        )
        .await?;
    if ended.is_empty() {
        // Asked again, because the answer to the first time got lost on the way: then it is done already.
        let same = s
            .query(
                "SELECT id FROM job_runs WHERE id = $1 AND state = $2 AND started_at = $3 AND finished_at = $4",
                &[id.into(), end.state.as_str().into(), end.started_at.into(), end.finished_at.into()],
            )
            .await?;
        return Ok(!same.is_empty());
    }
    alerts::carry_out(s, changes).await?;
    Ok(true)
}

pub(super) async fn record<S: Session>(s: &mut S, runs: &[(Run, Vec<AlertChange>)]) -> Result<u64, sqlx::Error> {
    let mut ordered: Vec<&Run> = runs.iter().map(|(run, _)| run).filter(|run| run.state != RunState::Running).collect();
    ordered.sort_by_key(|run| (&run.job, run.slot, run.attempt));
    let rows = &ordered;
    let added = s
        .given(
            &[
                text("id", rows, |run| &run.id),
                text("job", rows, |run| &run.job),
                time("slot", rows, |run| run.slot),
                int("attempt", rows, |run| Some(run.attempt.into())),
                text("trigger", rows, |run| run.trigger.as_str()),
                text("state", rows, |run| run.state.as_str()),
                maybe_text("cause", rows, |run| run.cause.map(|cause| cause.as_str())),
                int("slots", rows, |run| Some(run.slots.into())),
                Column { name: "exclusive", cells: Cells::Flag(vec![false; rows.len()]) },
                text("owner", rows, |run| &run.owner),
                text("host", rows, |run| &run.host),
                text("version", rows, |run| &run.version),
                time("created_at", rows, |run| Some(run.created_at)),
                time("started_at", rows, |run| run.started_at),
                time("finished_at", rows, |run| run.finished_at),
                int("duration_ms", rows, |run| run.duration_ms.map(signed)),
                int("rows", rows, |run| run.rows.map(signed)),
                maybe_text("error", rows, |run| run.error.as_deref().map(clip)),
                Column {
                    name: "findings",
                    cells: Cells::Json(rows.iter().map(|run| json_text(&run.findings)).collect()),
                },
            ],
            "INSERT INTO job_runs (id, job, slot, attempt, trigger, state, cause, slots, exclusive, owner, host, version, \
             created_at, started_at, finished_at, duration_ms, rows, error, findings) \
             SELECT id, job, slot, attempt, trigger, state, cause, slots, exclusive, owner, host, version, \
             created_at, started_at, finished_at, duration_ms, rows, error, findings FROM given WHERE true \
             ON CONFLICT DO NOTHING RETURNING id",
        )
        .await?;
    let added = added.iter().map(|row| row.text("id")).collect::<Result<HashSet<_>, _>>()?;
    let changes = runs.iter().filter(|(run, _)| added.contains(&run.id)).flat_map(|(_, changes)| changes);
    alerts::carry_out(s, changes).await?;
    Ok(added.len() as u64)
}

pub(super) async fn last_slots<S: Session>(s: &mut S) -> Result<BTreeMap<String, DateTime<Utc>>, sqlx::Error> {
    // From job to job and to its newest slot by the index: years of runs are not read for this.
    let rows = s
        .query(
            "WITH RECURSIVE found(job) AS (SELECT min(job) FROM job_runs WHERE slot IS NOT NULL \
             UNION ALL SELECT (SELECT min(run.job) FROM job_runs run WHERE run.slot IS NOT NULL AND run.job > found.job) \
             FROM found WHERE found.job IS NOT NULL) \
             SELECT job, (SELECT max(run.slot) FROM job_runs run WHERE run.slot IS NOT NULL AND run.job = found.job) AS slot \
             FROM found WHERE job IS NOT NULL",
            &[],
        )
        .await?;
    rows.iter().map(|row| Ok((row.text("job")?, row.time("slot")?))).collect()
}

pub(super) async fn list<S: Session>(s: &mut S, filter: &RunFilter) -> Result<Vec<Run>, sqlx::Error> {
    let mut values: Vec<Value<'_>> = vec![i64::from(filter.limit).into()];
    let mut conditions = String::from("true");
    if let Some(job) = &filter.job {
        values.push(job.as_str().into());
        conditions += &format!(" AND job = ${}", values.len());
    }
    if let Some(since) = filter.since {
        values.push(since.into());
        conditions += &format!(" AND created_at >= ${}", values.len());
    }
    if !filter.states.is_empty() {
        let words: Vec<_> = filter.states.iter().map(|state| format!("'{state}'")).collect();
        conditions += &format!(" AND state IN ({})", words.join(", "));
    }
    let sql = format!("SELECT {RUN} FROM job_runs WHERE {conditions} ORDER BY created_at DESC, id DESC LIMIT $1");
    s.query(&sql, &values).await?.iter().map(run).collect()
}
