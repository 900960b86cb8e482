//! The operator's side of the HTTP API.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, RequestBuilder, StatusCode};
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

    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        self.send(Method::PUT, path, &[], Some(body)).await
    }

    /// A request whose answer has no body.
    pub async fn put_nothing(&self, path: &str, body: &impl Serialize) -> anyhow::Result<()> {
        self.ask(self.http.request(Method::PUT, self.url(path)).json(body)).await?;
        Ok(())
    }

    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.ask(self.http.request(Method::DELETE, self.url(path))).await?;
        Ok(())
    }

    /// The answer as it came, of a path that speaks plain text.
    pub async fn text(&self, path: &str) -> anyhow::Result<String> {
        self.ask(self.http.request(Method::GET, self.url(path))).await
    }

    /// Posts a document as it is; an answer that refuses it may still be of the type asked for.
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: Vec<u8>,
    ) -> anyhow::Result<T> {
        let (status, text) =
            self.answer(self.http.request(Method::POST, self.url(path)).query(query).body(body)).await?;
        match serde_json::from_str(&text) {
            Ok(value) => Ok(value),
            Err(_) => bail!("{}", self.error_line(status, &text)),
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let mut request = self.http.request(method, self.url(path)).query(query);
        if let Some(body) = body {
            request = request.json(body);
        }
        let text = self.ask(request).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} answered what this dodo does not understand", self.base))
    }

    /// The text of a successful answer.
    async fn ask(&self, request: RequestBuilder) -> anyhow::Result<String> {
        let (status, text) = self.answer(request).await?;
        if !status.is_success() {
            bail!("{}", self.error_line(status, &text));
        }
        Ok(text)
    }

    async fn answer(&self, mut request: RequestBuilder) -> anyhow::Result<(StatusCode, String)> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|_| {
            anyhow::anyhow!("no scheduler answers at {}; start one with `dodo up`, or set DODO_API_URL", self.base)
        })?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| format!("the answer of {} broke off", self.base))?;
        Ok((status, text))
    }

    fn error_line(&self, status: StatusCode, text: &str) -> String {
        let error: Option<serde_json::Value> = serde_json::from_str(text).ok();
        let line = error.and_then(|error| error["error"].as_str().map(str::to_owned));
        line.unwrap_or_else(|| format!("{} answered {status}", self.base))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}
