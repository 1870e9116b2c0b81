//! The faults of a cluster, as data.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::Error;
use shared::Program;

use super::super::system::{AnyFault, fault_named};
use crate::cluster::PartitionHandling;

/// One of two replicas of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica {
    /// The service.
    pub program: Program,
    /// 1 or 2.
    pub number: u8,
}

impl Replica {
    /// Two of each service.
    pub fn all() -> impl Iterator<Item = Self> {
        Program::ALL
            .into_iter()
            .flat_map(|program| [1, 2].map(|number| Self { program, number }))
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.program, self.number)
    }
}

/// The part that a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A service.
    Service(Replica),
    /// One broker or several.
    Brokers,
    /// A Postgres server or both.
    Database,
    /// The balancer in front of the brokers.
    BrokerBalancer,
    /// The balancer in front of the primary.
    DatabaseBalancer,
}

/// A temporary fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A service is killed with SIGKILL, and later started again.
    Kill(Replica),
    /// The broker that leads a queue is killed.
    KillLeader,
    /// The broker with the most clients is killed.
    KillConnected,
    /// Two brokers are killed, so that no queue has a majority.
    KillTwo,
    /// All brokers are killed.
    KillAll,
    /// The broker that leads a queue is cut off from the two others. Clients reach it.
    CutFromPeers(PartitionHandling),
    /// The broker with the most clients is cut off the network.
    CutFromAll(PartitionHandling),
    /// All brokers are drained and restarted one after the other.
    Roll,
    /// The primary is switched off; the standby is promoted.
    LosePrimary,
    /// A planned switchover to the standby.
    Switchover,
    /// The primary is cut off the network but keeps running; the standby is promoted.
    PrimaryOffNetwork,
    /// The standby is cut off the network, so that no commit returns.
    StandbyOffNetwork,
    /// The standby is cut off, the primary is restarted meanwhile and then destroyed with its disk, and
    /// an operator promotes the standby.
    StandbyThenPrimary,
    /// The balancer in front of the brokers is frozen: its connections hang.
    HangBrokerBalancer,
    /// The balancer in front of the primary is frozen.
    HangDatabaseBalancer,
}

impl Fault {
    /// All faults.
    pub fn all() -> Vec<Self> {
        use PartitionHandling::{Ignore, PauseMinority};
        let mut all: Vec<Self> = Replica::all().map(Self::Kill).collect();
        all.extend([
            Self::KillLeader,
            Self::KillConnected,
            Self::KillTwo,
            Self::KillAll,
        ]);
        all.extend([Ignore, PauseMinority].map(Self::CutFromPeers));
        all.extend([Ignore, PauseMinority].map(Self::CutFromAll));
        all.extend([
            Self::Roll,
            Self::LosePrimary,
            Self::Switchover,
            Self::PrimaryOffNetwork,
            Self::StandbyOffNetwork,
            Self::StandbyThenPrimary,
            Self::HangBrokerBalancer,
            Self::HangDatabaseBalancer,
        ]);
        all
    }

    /// The most informative ones, for a drill of a few minutes.
    pub fn essential() -> Vec<Self> {
        vec![
            Self::KillLeader,
            Self::KillTwo,
            Self::CutFromPeers(PartitionHandling::PauseMinority),
            Self::LosePrimary,
            Self::StandbyThenPrimary,
            Self::HangDatabaseBalancer,
        ]
    }
}

impl AnyFault for Fault {
    type Part = Part;

    fn part(self) -> Part {
        match self {
            Self::Kill(replica) => Part::Service(replica),
            Self::KillLeader
            | Self::KillConnected
            | Self::KillTwo
            | Self::KillAll
            | Self::CutFromPeers(_)
            | Self::CutFromAll(_)
            | Self::Roll => Part::Brokers,
            Self::LosePrimary
            | Self::Switchover
            | Self::PrimaryOffNetwork
            | Self::StandbyOffNetwork
            | Self::StandbyThenPrimary => Part::Database,
            Self::HangBrokerBalancer => Part::BrokerBalancer,
            Self::HangDatabaseBalancer => Part::DatabaseBalancer,
        }
    }

    fn lasts_s(self) -> RangeInclusive<u64> {
        match self {
            Self::Kill(_) => 0..=5,
            Self::KillLeader | Self::KillConnected | Self::KillTwo | Self::KillAll => 3..=15,
            // A silent node counts as down after twelve seconds.
            Self::CutFromPeers(_) | Self::CutFromAll(_) => 20..=35,
            Self::Roll | Self::Switchover => 0..=0,
            Self::LosePrimary => 0..=20,
            // The primary's lease lasts 20 s.
            Self::PrimaryOffNetwork => 30..=45,
            Self::StandbyOffNetwork => 15..=40,
            Self::StandbyThenPrimary => 45..=120,
            Self::HangBrokerBalancer | Self::HangDatabaseBalancer => 10..=25,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handling = |handling: PartitionHandling| match handling {
            PartitionHandling::Ignore => "ignore",
            PartitionHandling::PauseMinority => "pause-minority",
        };
        match *self {
            Self::Kill(replica) => write!(f, "kill:{replica}"),
            Self::KillLeader => f.write_str("kill:leader"),
            Self::KillConnected => f.write_str("kill:connected-broker"),
            Self::KillTwo => f.write_str("kill:two-brokers"),
            Self::KillAll => f.write_str("kill:all-brokers"),
            Self::CutFromPeers(on) => write!(f, "cut-from-peers:{}", handling(on)),
            Self::CutFromAll(on) => write!(f, "cut-from-all:{}", handling(on)),
            Self::Roll => f.write_str("roll:brokers"),
            Self::LosePrimary => f.write_str("lose:primary"),
            Self::Switchover => f.write_str("switchover"),
            Self::PrimaryOffNetwork => f.write_str("off-network:primary"),
            Self::StandbyOffNetwork => f.write_str("off-network:standby"),
            Self::StandbyThenPrimary => f.write_str("standby-then-primary"),
            Self::HangBrokerBalancer => f.write_str("hang:broker-balancer"),
            Self::HangDatabaseBalancer => f.write_str("hang:database-balancer"),
        }
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        fault_named(&Self::all(), text)
    }
}

#[cfg(test)]
mod tests {
    use super::{AnyFault, Fault, Part};

    #[test]
    fn a_fault_is_named_as_it_is_shown() {
        for fault in Fault::all() {
            assert_eq!(fault.to_string().parse::<Fault>().expect("known"), fault);
        }
        let error = "kill:nobody".parse::<Fault>().expect_err("unknown");
        assert!(error.to_string().contains("kill:leader"), "{error}");
    }

    #[test]
    fn the_essential_faults_hit_brokers_database_and_balancer() {
        let essential = Fault::essential();
        assert!(essential.iter().all(|fault| Fault::all().contains(fault)));
        for part in [Part::Brokers, Part::Database, Part::DatabaseBalancer] {
            assert!(
                essential.iter().any(|fault| fault.part() == part),
                "{part:?}"
            );
        }
    }
}
