// The Railway project: Redis, Postgres and Lamplighter beside them. See docs/deploy.md.
//
//   npm install --no-save railway      the types and helpers of "railway/iac"
//   railway config plan                shows what would change
//   railway config apply               asks, then changes it
//
// Two ways to run: "service" stays up and starts each job to the second in its own time zone; "cron" is started by Railway
// every quarter of an hour, runs what is due and exits. Choose one; both at once would do no harm, only twice the looking.

import { defineRailway, github, postgres, preserve, project, redis, service } from "railway/iac";

const REPOSITORY = "your-account/lamplighter";
const MODE: "service" | "cron" = "service";

// Railway kills a container this long after SIGTERM; without it, at once.
const DRAINING_SECONDS = 30;

// A deploy that does not answer by then is given up, and the one before it stays.
const HEALTHY_WITHIN_SECONDS = 180;

export default defineRailway(() => {
  const cache = redis("Redis");
  const history = postgres("Postgres");

  const env = {
    REDIS_URL: cache.env.REDIS_URL,
    DATABASE_URL: history.env.DATABASE_URL,
    RAILWAY_DEPLOYMENT_DRAINING_SECONDS: String(DRAINING_SECONDS),
    // Set these in the dashboard and seal them; preserve() leaves them as they are there.
    BIGQUERY_PROJECT: preserve(),
    GOOGLE_CREDENTIALS_JSON: preserve(),
    SLACK_WEBHOOK_URL: preserve(),
  };

  const build = { builder: "DOCKERFILE", dockerfilePath: "Dockerfile" } as const;

  const watch =
    MODE === "service"
      ? service("lamplighter", {
          source: github(REPOSITORY),
          build,
          start: "lamplighter serve",
          deploy: {
            healthcheckPath: "/livez",
            healthcheckTimeout: HEALTHY_WITHIN_SECONDS,
            restartPolicyType: "ON_FAILURE",
            restartPolicyMaxRetries: 10,
          },
          env: { ...env, PORT: "8080" },
        })
      : service("lamplighter", {
          source: github(REPOSITORY),
          build,
          start: "lamplighter run --due",
          // Five minutes is Railway's shortest interval; it is in UTC, but each job keeps its own zone.
          deploy: { cronSchedule: "*/15 * * * *", restartPolicyType: "NEVER" },
          env,
        });

  return project("lamplighter", { resources: [cache, history, watch] });
});
