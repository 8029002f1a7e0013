//! What `[workers]` lets one choose.

/// What counts as a worker's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Its own pages, and its share of those that it shares with others.
    Pss,
    /// All pages that it has in memory: quicker to read, and too much where workers share pages.
    Rss,
}

/// Whether workers are forked from one process that imported the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preload {
    /// Every worker imports the application itself.
    Off,
    /// Threads and connections that a fork would break are named in a warning.
    On,
    /// They are refused.
    Strict,
}

/// Whether `workers.app` is the application, or what makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factory {
    /// A function that can be called without arguments is called.
    Auto,
    Yes,
    No,
}

impl Factory {
    /// As the launcher reads it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Yes => "yes",
            Self::No => "no",
        }
    }
}

/// How a worker says that it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// READY=1 on `NOTIFY_SOCKET` (sd_notify(3)).
    Notify,
    /// It answers a GET of this path, which begins with `/`, with a status below 400.
    Http(String),
}

/// How a person debugs the workers of this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Debugger {
    #[default]
    None,
    /// `breakpoint()` gets Tandem's terminal.
    Terminal,
    /// debugpy listens at this port.
    Listen(u16),
}

/// Who binds the listening socket of `workers.command`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerSocket {
    /// Tandem's, handed down.
    Inherited,
    /// The command binds `workers.listen` itself.
    Own,
}
