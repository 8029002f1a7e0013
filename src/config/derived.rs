//! What follows from the settings: how many connections there may be.

use sha2::{Digest, Sha256};

use super::settings::{PostgresMode, Settings};
use crate::plan::Budget;

impl Settings {
    /// A word for this deployment by which another one on this machine is told from it: its name, and a digest of its
    /// directory. Blocks: it looks at that directory.
    pub fn deployment(&self) -> String {
        let real = self.directory.canonicalize().unwrap_or_else(|_| self.directory.clone());
        let digest = Sha256::digest(real.as_os_str().as_encoded_bytes());
        let ending: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{ending}", self.name)
    }

    /// The connection budget that these settings ask for.
    pub fn budget(&self) -> Budget {
        Budget {
            workers: self.workers.count,
            pool_size: self.pool.size,
            pool_overflow: self.pool.overflow,
            rolling: self.workers.surge,
            reserved: self.postgres.reserved_connections,
            max_connections: self.postgres.max_connections,
        }
    }

    /// Let `postgres.max_connections = "auto"` be what the pools need and `memory` bytes bear.
    pub(super) fn choose_max_connections(&mut self, memory: u64) {
        self.memory = memory;
        if self.postgres.max_connections_auto {
            // Another machine's memory is not known, nor is this server's number: the budget says what it must be.
            let memory = if self.postgres.mode == PostgresMode::Managed { memory } else { u64::MAX };
            self.postgres.max_connections = self.budget().connections_for(memory);
        }
    }

    /// Where the number of connections comes from, as the end of the budget's sum; empty where it was written.
    pub fn why_so_many_connections(&self) -> String {
        let (budget, postgres) = (self.budget(), &self.postgres);
        match postgres.mode {
            _ if !postgres.max_connections_auto => String::new(),
            PostgresMode::Attach => " (auto: the attached server must accept as many)".to_owned(),
            PostgresMode::Managed => {
                let workers = u64::from(budget.workers) + budget.room().saturating_sub(u64::from(budget.rolling));
                let plural = if workers == 1 { "" } else { "s" };
                let limit = if budget.connections_for(u64::MAX) > postgres.max_connections {
                    format!(", more would not fit into {} MB of memory", self.memory >> 20)
                } else {
                    String::new()
                };
                format!(" (auto: room for {workers} worker{plural}{limit})")
            }
        }
    }
}
