//! The connection budget: what all workers' pools may open, against what the server accepts. Pure.

/// What PostgreSQL keeps for superusers (`superuser_reserved_connections`, its default).
const SUPERUSER_RESERVED: u32 = 3;

/// The fewest connections that `"auto"` comes to: PostgreSQL's own default.
const AUTO_MIN: u64 = 100;
/// So many workers have room, however few there are to begin with, because only a restart of PostgreSQL makes more.
const AUTO_WORKERS: u32 = 4;
/// What one used connection takes of the memory: its backend and what that caches.
const CONNECTION_BYTES: u64 = 3 << 19;
/// PostgreSQL's limit (`MAX_BACKENDS`), less what its own processes take of it.
const MOST: u64 = 200_000;

/// The terms of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub workers: u32,
    /// Each worker's pool: its size, and what it may open beyond that.
    pub pool_size: u32,
    pub pool_overflow: u32,
    /// Workers that a rolling restart adds: the replacement is ready before the old one leaves.
    pub rolling: u32,
    /// Kept back for people, backups and Tandem itself.
    pub reserved: u32,
    pub max_connections: u32,
}

impl Budget {
    /// Connections that one worker may open.
    pub fn per_worker(&self) -> u64 {
        u64::from(self.pool_size) + u64::from(self.pool_overflow)
    }

    /// Connections that everything together may open.
    pub fn total(&self) -> u64 {
        let pools = (u64::from(self.workers) + u64::from(self.rolling)).saturating_mul(self.per_worker());
        pools.saturating_add(u64::from(self.reserved) + u64::from(SUPERUSER_RESERVED))
    }

    /// What `max_connections = "auto"` comes to: all that may be opened, and no more than `memory` bytes bear.
    pub fn connections_for(&self, memory: u64) -> u32 {
        let wanted = Self { workers: self.workers.max(AUTO_WORKERS), ..*self }.total();
        let most = (memory / CONNECTION_BYTES).clamp(AUTO_MIN, MOST);
        wanted.clamp(AUTO_MIN, most) as u32
    }

    /// How many workers beyond `workers` the server has room for.
    pub fn room(&self) -> u64 {
        let kept = u64::from(self.reserved) + u64::from(SUPERUSER_RESERVED);
        let room = u64::from(self.max_connections).saturating_sub(kept);
        // Workers without a pool open nothing: as many as there are may come beside them.
        let all = room.checked_div(self.per_worker()).unwrap_or(2 * u64::from(self.workers));
        all.saturating_sub(u64::from(self.workers))
    }

    /// Whether the server has room for all that may be opened.
    ///
    /// # Errors
    /// The arithmetic in words, and the ways out on a second line.
    pub fn check(&self) -> Result<(), OverBudget> {
        if self.total() <= u64::from(self.max_connections) { Ok(()) } else { Err(OverBudget(*self)) }
    }

    /// The sum, as a person would write it.
    pub fn arithmetic(&self) -> String {
        let Self { workers, pool_size, pool_overflow, rolling, reserved, max_connections } = self;
        format!(
            "{workers} workers × ({pool_size} + {pool_overflow}) + {rolling} more during a roll × {per_worker} + {reserved} \
             reserved + {SUPERUSER_RESERVED} for superusers = {total}, max_connections is {max_connections}",
            per_worker = self.per_worker(),
            total = self.total(),
        )
    }

    /// The ways out of a budget that does not fit.
    fn ways_out(&self) -> String {
        let kept = u64::from(self.reserved) + u64::from(SUPERUSER_RESERVED);
        let room = u64::from(self.max_connections).saturating_sub(kept);
        let workers = (room / self.per_worker().max(1)).saturating_sub(u64::from(self.rolling));
        let per_worker = room / (u64::from(self.workers) + u64::from(self.rolling)).max(1);
        let mut ways = vec![format!("raise postgres.max_connections to {}", self.total())];
        if per_worker > 0 {
            ways.push(format!("let pool.size + pool.overflow be at most {per_worker}"));
        }
        let rolling = (room / self.per_worker().max(1)).saturating_sub(u64::from(self.workers));
        if rolling > 0 && self.rolling > 1 {
            ways.push(format!("let workers.surge be at most {rolling}"));
        }
        if workers > 0 {
            ways.push(format!("let workers.count be at most {workers}"));
        }
        match ways.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{}, or {last}", rest.join(", ")),
            _ => ways.concat(),
        }
    }
}

/// The pools together may open more than the server accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the workers' pools may open more connections than PostgreSQL accepts: {}", .0.arithmetic())]
pub struct OverBudget(Budget);

impl OverBudget {
    /// What to do about it.
    pub fn help(&self) -> String {
        self.0.ways_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn budget(workers: u32, pool_size: u32, pool_overflow: u32) -> Budget {
        Budget { workers, pool_size, pool_overflow, rolling: 1, reserved: 10, max_connections: 100 }
    }

    #[test]
    fn the_guides_own_pools_do_not_fit_and_the_defaults_do() {
        assert_eq!(budget(4, 5, 10).check(), Ok(()));
        let over = budget(4, 20, 10).check().unwrap_err();
        expect![[r#"
            the workers' pools may open more connections than PostgreSQL accepts: 4 workers × (20 + 10) + 1 more during a roll × 30 + 10 reserved + 3 for superusers = 163, max_connections is 100
            raise postgres.max_connections to 163, let pool.size + pool.overflow be at most 17, or let workers.count be at most 1"#]]
        .assert_eq(&format!("{over}\n{}", over.help()));
    }

    #[test]
    fn auto_is_what_is_needed_and_the_memory_bears() {
        let auto = |workers, pool_size, overflow, megabytes: u64| {
            budget(workers, pool_size, overflow).connections_for(megabytes << 20)
        };
        assert_eq!(auto(4, 20, 10, 8192), 163, "the guide's pools");
        assert_eq!(auto(1, 20, 10, 8192), 163, "room to scale to four");
        assert_eq!(auto(8, 20, 10, 8192), 283);
        assert_eq!(auto(4, 1, 1, 8192), 100, "no fewer than PostgreSQL's own default");
        assert_eq!(auto(16, 20, 10, 512), 341, "what 512 MB bear");
        assert_eq!(auto(4, 20, 10, 16), 100);
        assert_eq!(auto(u32::MAX, u32::MAX, u32::MAX, u64::MAX >> 20), 200_000);
    }

    #[test]
    fn the_room_is_what_still_fits() {
        assert_eq!(budget(4, 5, 10).room(), 1, "(100 - 13) / 15 = 5");
        assert_eq!(budget(4, 5, 5).room(), 4);
        assert_eq!(budget(4, 0, 0).room(), 4);
        assert_eq!(budget(4, 20, 10).room(), 0);
        let full = Budget { rolling: 4, ..budget(4, 5, 5) };
        assert_eq!(full.check(), Ok(()), "what has room fits");
    }

    #[test]
    fn every_way_out_leads_out() {
        for (workers, size, overflow) in [(4, 20, 10), (100, 1, 0), (1, 100, 100), (7, 13, 0), (4, 18, 0)] {
            let over = budget(workers, size, overflow);
            let Err(_) = over.check() else { continue };
            let raised = Budget { max_connections: over.total() as u32, ..over };
            assert_eq!(raised.check(), Ok(()));
            let room = 100 - 13;
            let narrow = Budget { pool_size: room / (workers + 1), pool_overflow: 0, ..over };
            assert_eq!(narrow.check(), Ok(()));
        }
        let surging = Budget { rolling: 4, ..budget(4, 5, 8) };
        let help = surging.check().unwrap_err().help();
        assert!(help.contains("workers.surge be at most 2"), "{help}");
        assert_eq!(Budget { rolling: 2, ..surging }.check(), Ok(()));
        let help = budget(1, 100, 100).check().unwrap_err().help();
        assert!(!help.contains("workers.count"), "no number of workers would help: {help}");
    }
}
