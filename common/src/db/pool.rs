//! Connections to Postgres, and the one way to run a transaction.

use std::str::FromStr;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod, Runtime};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

pub use deadpool_postgres::{Client, ClientWrapper as Session, Transaction};

/// A connection is given up after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Waiting for a free connection of the pool.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Serialisation failures and deadlocks are retried this often.
pub const RETRIES_MAX: u32 = 5;
/// Session settings of the pipeline: short lock and idle timeouts (invariant 12); every query is by
/// key, so a plan cached while a table was small must not scan it when it is large.
const OPTIONS: &str = "-c timezone=UTC -c statement_timeout=30s -c lock_timeout=5s \
    -c idle_in_transaction_session_timeout=10s -c enable_seqscan=off -c enable_mergejoin=off -c jit=off";
/// What a worker asks has one good plan, whatever the values, and to plan a commit takes as long as to run it. Not so what
/// users ask of the API, with filters that are set or not.
const ONE_PLAN: &str = "-c plan_cache_mode=force_generic_plan";

/// Everything that can go wrong between us and Postgres.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("Postgres: {}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("no connection to Postgres: {0}; is it running, and is DODO_DATABASE_URL right?")]
    Pool(String),
    #[error("DODO_DATABASE_URL is not a Postgres URL: {0}")]
    Url(String),
    /// This worker was declared lost, or its generation is over: it writes nothing and registers anew.
    #[error("this worker may not write any more: {0}")]
    WorkerRefused(String),
    /// Another scheduler leads.
    #[error("this scheduler does not lead any more: {0}")]
    LeaderRefused(String),
    #[error("{0}")]
    Schema(String),
    #[error("{0}")]
    Input(String),
}

pub type DbResult<T> = Result<T, DbError>;

impl From<deadpool_postgres::PoolError> for DbError {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => DbError::Pool(describe(&error)),
            other => DbError::Pool(other.to_string()),
        }
    }
}

impl DbError {
    /// Reads our own error codes out of a server's answer.
    pub fn of(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) if db.code().code() == "DD001" => DbError::WorkerRefused(db.message().to_owned()),
            Some(db) if db.code().code() == "DD002" => DbError::LeaderRefused(db.message().to_owned()),
            _ => DbError::Postgres(error),
        }
    }

    /// The data is at fault, not the server: the batch may be bisected (invariant 12).
    pub fn is_data(&self) -> bool {
        match self {
            // Class 21 is rows that would be written twice, 22 data exceptions, 23 constraint violations, 54 program limits.
            DbError::Postgres(error) => error
                .code()
                .is_some_and(|code| ["21", "22", "23", "54"].iter().any(|class| code.code().starts_with(class))),
            DbError::Input(_) => true,
            _ => false,
        }
    }

    pub fn is_serialisation(&self) -> bool {
        match self {
            DbError::Postgres(error) => matches!(
                error.code(),
                Some(code) if *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED
            ),
            _ => false,
        }
    }
}

/// One line: the server's own words where there are some, else what the socket says.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// A pool of one role's connections to one database.
#[derive(Clone, Debug)]
pub struct Db {
    pool: Pool,
}

impl Db {
    /// A pool of `size` connections that work as `dodo_pipeline` and are named `name` in
    /// `pg_stat_activity`, so that the reaper can end a lost worker's sessions.
    pub fn pipeline(url: &str, name: &str, size: usize) -> DbResult<Self> {
        Self::open(url, name, size, &format!("{OPTIONS} -c role=dodo_pipeline"))
    }

    /// The same of a worker.
    pub fn worker(url: &str, name: &str, size: usize) -> DbResult<Self> {
        Self::open(url, name, size, &format!("{OPTIONS} {ONE_PLAN} -c role=dodo_pipeline"))
    }

    /// A single connection as the owner of the schema, without the pipeline's timeouts.
    pub fn owner(url: &str) -> DbResult<Self> {
        Self::open(url, "dodo-migrate", 1, "-c timezone=UTC -c client_min_messages=warning")
    }

    fn open(url: &str, name: &str, size: usize, options: &str) -> DbResult<Self> {
        let mut config = Config::from_str(url).map_err(|error| DbError::Url(describe(&error)))?;
        config
            .application_name(name)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(Duration::from_secs(10));
        let given = config.get_options().unwrap_or_default().to_owned();
        config.options(format!("{options} {given}"));
        let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(size)
            // The one that was used last has its plans and caches: few are warm rather than all lukewarm.
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(WAIT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .build()
            .map_err(|error| DbError::Pool(error.to_string()))?;
        Ok(Self { pool })
    }

    pub async fn client(&self) -> DbResult<Client> {
        Ok(self.pool.get().await?)
    }

    /// A session that alone has the lock of this name, for as long as it lives; none if another has it.
    pub async fn lock(&self, name: &str) -> DbResult<Option<Session>> {
        let client = self.client().await?;
        let row = client.query_one("-- try-lock\nSELECT pg_try_advisory_lock(hashtext($1))", &[&name]).await?;
        Ok(row.get::<_, bool>(0).then(|| Client::take(client)))
    }

    /// Begins a transaction; with a tenant, as `dodo_tenant`, which sees and writes nothing else. Use it
    /// through [`run_tx`](crate::run_tx).
    pub async fn begin<'c>(client: &'c mut Client, tenant: Option<&str>) -> DbResult<Transaction<'c>> {
        let tx = client.transaction().await?;
        if let Some(tenant) = tenant {
            let become_tenant = "SELECT set_config('role', 'dodo_tenant', true), set_config('dodo.tenant', $1, true)";
            let statement = tx.prepare_cached(become_tenant).await?;
            tx.execute(&statement, &[&tenant]).await?;
        }
        Ok(tx)
    }
}

/// Runs a body in a transaction with a name, again where the server asks for it, and times it:
/// `run_tx!(db, "roll-up", |tx| { .. Ok(value) })`; with `tenant: name,` it runs as that tenant.
///
/// A macro and not a function: the body borrows freely, and its future stays `Send`.
#[macro_export]
macro_rules! run_tx {
    ($db:expr, $name:literal, |$tx:ident| $body:block) => {
        $crate::run_tx!($db, $name, None, $tx, $body)
    };
    ($db:expr, $name:literal, tenant: $tenant:expr, |$tx:ident| $body:block) => {
        $crate::run_tx!($db, $name, Some($tenant), $tx, $body)
    };
    ($db:expr, $name:literal, $tenant:expr, $tx:ident, $body:block) => {{
        let mut tries = 0;
        loop {
            let started = std::time::Instant::now();
            let attempt = async {
                let mut client = $db.client().await?;
                let owned = $crate::db::pool::Db::begin(&mut client, $tenant).await?;
                let value = {
                    let $tx = &owned;
                    let value: $crate::db::pool::DbResult<_> = async { $body }.await;
                    value?
                };
                owned.commit().await.map_err($crate::db::pool::DbError::of)?;
                $crate::db::pool::DbResult::Ok(value)
            };
            let result = attempt.await;
            metrics::histogram!("dodo_transaction_seconds", "name" => $name).record(started.elapsed().as_secs_f64());
            match result {
                Err(error) if error.is_serialisation() && tries < $crate::db::pool::RETRIES_MAX => {
                    tries += 1;
                    metrics::counter!("dodo_transaction_retries_total", "name" => $name).increment(1);
                    tokio::time::sleep(std::time::Duration::from_millis(5 << tries)).await;
                }
                other => break other,
            }
        }
    }};
}
