//! Where an image can be had: mirrors in their order, then the registry itself; each opened when it is needed.

use std::fmt;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::auth::{Credentials, Login};
use crate::client::LoopbackTrust;
use crate::error::ResolveError;
use crate::http::Http;
use crate::http::session::Session;
use crate::reference::Reference;
use crate::registries::{PullEndpoint, Registries, Transport};

/// All places of one reference.
pub(crate) struct Places {
    http: Arc<Http>,
    loopback: LoopbackTrust,
    reference: Reference,
    registries: Arc<Registries>,
    credentials: Credentials,
    places: Vec<(PullEndpoint, OnceCell<Arc<Session>>)>,
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.places.iter().map(|(endpoint, _)| &endpoint.reference)).finish()
    }
}

/// A place that has been connected to.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    index: usize,
    session: Arc<Session>,
}

/// A place that has not.
pub(crate) struct NextPlace {
    places: Arc<Places>,
    index: usize,
    /// Of the place before: stands in where this one cannot be opened.
    session: Arc<Session>,
}

impl Places {
    pub(crate) fn new(
        http: &Arc<Http>,
        loopback: LoopbackTrust,
        reference: &Reference,
        registries: &Arc<Registries>,
        credentials: &Credentials,
        endpoints: Vec<PullEndpoint>,
    ) -> Arc<Self> {
        Arc::new(Self {
            http: Arc::clone(http),
            loopback,
            reference: reference.clone(),
            registries: Arc::clone(registries),
            credentials: credentials.clone(),
            places: endpoints.into_iter().map(|endpoint| (endpoint, OnceCell::new())).collect(),
        })
    }

    /// The references as asked at each place, in order.
    pub(crate) fn references(&self) -> impl Iterator<Item = &Reference> {
        self.places.iter().map(|(endpoint, _)| &endpoint.reference)
    }

    /// Connects to a place, once for all who need it.
    pub(crate) async fn open(self: &Arc<Self>, index: usize) -> Result<Place, ResolveError> {
        let (endpoint, session) = &self.places[index];
        let session = session.get_or_try_init(|| self.connect(endpoint)).await?;
        Ok(Place { places: Arc::clone(self), index, session: Arc::clone(session) })
    }

    async fn connect(&self, endpoint: &PullEndpoint) -> Result<Arc<Session>, ResolveError> {
        let login = self.find_login(endpoint).await?;
        let is_trusted_loopback = self.loopback == LoopbackTrust::Insecure && is_loopback(endpoint.reference.domain());
        let transport = if is_trusted_loopback { Transport::Insecure } else { endpoint.transport };
        let session = Session::open(&self.http, &endpoint.reference, transport, login).await;
        session.map(Arc::new).map_err(|source| ResolveError::Registry {
            what: "manifest".to_owned(),
            reference: endpoint.reference.clone(),
            source,
        })
    }

    /// The login for one place. What a request brings is for the registry it names, never for a mirror elsewhere.
    async fn find_login(&self, endpoint: &PullEndpoint) -> Result<Option<Login>, ResolveError> {
        let files = match &self.credentials {
            Credentials::Anonymous => return Ok(None),
            Credentials::Request { login, .. } if endpoint.reference.domain() == self.reference.domain() => {
                return Ok(Some(login.clone()));
            }
            Credentials::Request { elsewhere, .. } => elsewhere,
            Credentials::Files(files) => files,
        };
        files
            .find(&endpoint.reference, &self.registries.credential_helpers)
            .await
            .map_err(|source| ResolveError::Credentials { reference: endpoint.reference.clone(), source })
    }
}

impl Place {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The repository as it is asked for here.
    pub(crate) fn name(&self) -> String {
        self.places.places[self.index].0.reference.repository()
    }

    /// The place after this one.
    pub(crate) fn next(&self) -> Option<NextPlace> {
        let index = self.index + 1;
        let session = Arc::clone(&self.session);
        (index < self.places.places.len()).then(|| NextPlace { places: Arc::clone(&self.places), index, session })
    }
}

impl NextPlace {
    /// Connects. A place that cannot be opened is returned with the error, so that one can go on from it.
    pub(crate) async fn open(self) -> Result<Place, (Place, Box<ResolveError>)> {
        match self.places.open(self.index).await {
            Ok(place) => Ok(place),
            Err(error) => {
                Err((Place { places: self.places, index: self.index, session: self.session }, Box::new(error)))
            }
        }
    }
}

fn is_loopback(domain: &str) -> bool {
    let host = match domain.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => domain.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
