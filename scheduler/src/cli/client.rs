//! The operator's side of the HTTP API.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::Remote;

const TIMEOUT: Duration = Duration::from_secs(30);

pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    pub fn new(remote: &Remote) -> anyhow::Result<Self> {
        let http =
            reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().context("cannot make an HTTP client")?;
        Ok(Self { http, base: remote.api.trim_end_matches('/').to_owned(), token: remote.token.clone() })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<T> {
        self.send(Method::GET, path, query, None::<&()>).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.send(Method::POST, path, &[], Some(body)).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).query(query);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|_| {
            anyhow::anyhow!("no scheduler answers at {}; start one with `dodo up`, or set DODO_API_URL", self.base)
        })?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| format!("the answer of {} broke off", self.base))?;
        if !status.is_success() {
            let error: Option<serde_json::Value> = serde_json::from_str(&text).ok();
            let line = error.and_then(|error| error["error"].as_str().map(str::to_owned));
            bail!("{}", line.unwrap_or_else(|| format!("{} answered {status}", self.base)));
        }
        serde_json::from_str(&text)
            .with_context(|| format!("{} answered what this dodo does not understand", self.base))
    }
}
