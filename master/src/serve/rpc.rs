//! Every RPC that this port serves: what it is called, what it takes, and what its caller must be allowed to do. A
//! method that is not here does not exist for clients, and one that is here has a row in every table below.

use proffer_types::Action;

/// Largest Accept.
const ACCEPT_BYTES_MAX: usize = 16 << 20;
/// Largest message of an agent's session: a listing tells everything that a node holds.
const SESSION_BYTES_MAX: usize = 4 << 20;
/// Largest message of any other call.
const BYTES_MAX: usize = 256 << 10;

macro_rules! rpcs {
    ($($(#[$doc:meta])* $rpc:ident = $path:literal,)*) => {
        /// A method of a service.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rpc { $($(#[$doc])* $rpc,)* }

        impl Rpc {
            /// Every method.
            pub const ALL: &'static [Self] = &[$(Self::$rpc,)*];

            /// The path under which it is called.
            pub fn path(self) -> &'static str {
                match self { $(Self::$rpc => $path,)* }
            }

            /// The method of this path.
            pub fn of(path: &str) -> Option<Self> {
                match path { $($path => Some(Self::$rpc),)* _ => None }
            }
        }
    };
}

rpcs! {
    /// A framework's event stream.
    Subscribe = "/proffer.scheduler.v1.SchedulerService/Subscribe",
    /// Uses of offers.
    Accept = "/proffer.scheduler.v1.SchedulerService/Accept",
    /// Offers given back.
    Decline = "/proffer.scheduler.v1.SchedulerService/Decline",
    /// No offers.
    Suppress = "/proffer.scheduler.v1.SchedulerService/Suppress",
    /// Offers again.
    Revive = "/proffer.scheduler.v1.SchedulerService/Revive",
    /// A task's end.
    Kill = "/proffer.scheduler.v1.SchedulerService/Kill",
    /// Statuses seen.
    Acknowledge = "/proffer.scheduler.v1.SchedulerService/Acknowledge",
    /// Statuses wanted.
    Reconcile = "/proffer.scheduler.v1.SchedulerService/Reconcile",
    /// An executor's end.
    ShutdownExecutor = "/proffer.scheduler.v1.SchedulerService/ShutdownExecutor",
    /// Bytes for an executor.
    SendMessage = "/proffer.scheduler.v1.SchedulerService/SendMessage",
    /// A framework's new info.
    UpdateFramework = "/proffer.scheduler.v1.SchedulerService/UpdateFramework",
    /// A framework's end.
    Teardown = "/proffer.scheduler.v1.SchedulerService/Teardown",
    /// An agent's session.
    Session = "/proffer.agent.v1.AgentService/Session",
    /// Data that an agent brings.
    Data = "/proffer.agent.v1.AgentService/Data",
    /// The cluster at a glance.
    GetStatus = "/proffer.admin.v1.AdminService/GetStatus",
    /// Tasks.
    ListTasks = "/proffer.admin.v1.AdminService/ListTasks",
    /// A task.
    GetTask = "/proffer.admin.v1.AdminService/GetTask",
    /// Agents.
    ListAgents = "/proffer.admin.v1.AdminService/ListAgents",
    /// An agent.
    GetAgent = "/proffer.admin.v1.AdminService/GetAgent",
    /// Frameworks.
    ListFrameworks = "/proffer.admin.v1.AdminService/ListFrameworks",
    /// A framework.
    GetFramework = "/proffer.admin.v1.AdminService/GetFramework",
    /// Offers.
    ListOffers = "/proffer.admin.v1.AdminService/ListOffers",
    /// Executors.
    ListExecutors = "/proffer.admin.v1.AdminService/ListExecutors",
    /// Masters.
    ListMasters = "/proffer.admin.v1.AdminService/ListMasters",
    /// Somebody's task's end.
    KillTask = "/proffer.admin.v1.AdminService/KillTask",
    /// Somebody's framework's end.
    TeardownFramework = "/proffer.admin.v1.AdminService/TeardownFramework",
    /// A task's output.
    ReadLogs = "/proffer.admin.v1.AdminService/ReadLogs",
    /// What becomes true.
    WatchEvents = "/proffer.admin.v1.AdminService/WatchEvents",
    /// A program in a task's container.
    Exec = "/proffer.admin.v1.AdminService/Exec",
    /// A task's terminal.
    Attach = "/proffer.admin.v1.AdminService/Attach",
    /// A sandbox's files.
    ListFiles = "/proffer.admin.v1.AdminService/ListFiles",
    /// What is in them.
    ReadFiles = "/proffer.admin.v1.AdminService/ReadFiles",
    /// Files for a sandbox.
    WriteFiles = "/proffer.admin.v1.AdminService/WriteFiles",
    /// What an agent's tasks use.
    WatchUsage = "/proffer.admin.v1.AdminService/WatchUsage",
    /// Whether the master serves.
    HealthCheck = "/grpc.health.v1.Health/Check",
    /// The same, as a stream.
    HealthWatch = "/grpc.health.v1.Health/Watch",
    /// What can be called.
    Reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    /// What can be called, for older tools.
    ReflectionAlpha = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}

/// What happens when much is asked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Never refused for being too much: bounded by what lives in the cluster.
    Vital,
    /// Launches and operators' changes.
    Write,
    /// Reads.
    Read,
}

impl Rpc {
    /// What its caller must be allowed to do.
    pub fn action(self) -> Action {
        match self {
            Self::Subscribe
            | Self::Accept
            | Self::Decline
            | Self::Suppress
            | Self::Revive
            | Self::Kill
            | Self::Acknowledge
            | Self::Reconcile
            | Self::ShutdownExecutor
            | Self::SendMessage
            | Self::UpdateFramework
            | Self::Teardown => Action::ActAsFramework,
            Self::Session | Self::Data => Action::ActAsAgent,
            Self::GetStatus
            | Self::ListTasks
            | Self::GetTask
            | Self::ListAgents
            | Self::GetAgent
            | Self::ListFrameworks
            | Self::GetFramework
            | Self::ListOffers
            | Self::ListExecutors
            | Self::ListMasters
            | Self::WatchEvents
            | Self::WatchUsage => Action::Read,
            Self::KillTask => Action::KillTask,
            Self::TeardownFramework => Action::TeardownFramework,
            Self::ReadLogs => Action::ReadLogs,
            Self::Exec => Action::Exec,
            Self::Attach => Action::Attach,
            Self::ListFiles | Self::ReadFiles => Action::ReadFiles,
            Self::WriteFiles => Action::WriteFiles,
            Self::HealthCheck | Self::HealthWatch | Self::Reflection | Self::ReflectionAlpha => Action::Read,
        }
    }

    /// What happens to it when much is asked at once.
    pub fn class(self) -> Class {
        match self {
            Self::Accept | Self::SendMessage | Self::UpdateFramework | Self::TeardownFramework => {
                Class::Write
            }
            Self::GetStatus
            | Self::ListTasks
            | Self::GetTask
            | Self::ListAgents
            | Self::GetAgent
            | Self::ListFrameworks
            | Self::GetFramework
            | Self::ListOffers
            | Self::ListExecutors
            | Self::ListMasters
            | Self::ReadLogs
            | Self::WatchEvents
            | Self::Exec
            | Self::Attach
            | Self::ListFiles
            | Self::ReadFiles
            | Self::WriteFiles
            | Self::WatchUsage => Class::Read,
            Self::Subscribe
            | Self::Decline
            | Self::Suppress
            | Self::Revive
            | Self::Kill
            | Self::ShutdownExecutor
            | Self::Acknowledge
            | Self::Reconcile
            | Self::Teardown
            | Self::Session
            | Self::Data
            | Self::KillTask
            | Self::HealthCheck
            | Self::HealthWatch
            | Self::Reflection
            | Self::ReflectionAlpha => Class::Vital,
        }
    }

    /// Largest message it takes, in bytes.
    pub fn bytes_max(self) -> usize {
        match self {
            Self::Accept => ACCEPT_BYTES_MAX,
            Self::Session => SESSION_BYTES_MAX,
            _ => BYTES_MAX,
        }
    }

    /// Whether its caller sends a stream: such a body may stay open for ever, but not in the middle of a message.
    pub fn takes_stream(self) -> bool {
        matches!(
            self,
            Self::Session
                | Self::Data
                | Self::Exec
                | Self::Attach
                | Self::WriteFiles
                | Self::Reflection
                | Self::ReflectionAlpha
        )
    }

    /// Whether it answers with a stream.
    pub fn gives_stream(self) -> bool {
        let unary = matches!(self, Self::WriteFiles);
        let streams = matches!(
            self,
            Self::Subscribe
                | Self::ReadLogs
                | Self::WatchEvents
                | Self::ReadFiles
                | Self::WatchUsage
                | Self::HealthWatch
        );
        (self.takes_stream() && !unary) || streams
    }

    /// Whether it may have taken effect although its caller's deadline has passed.
    pub fn mutates(self) -> bool {
        matches!(self.class(), Class::Write)
            || matches!(
                self,
                Self::Kill
                    | Self::KillTask
                    | Self::Acknowledge
                    | Self::Teardown
                    | Self::Subscribe
                    | Self::WriteFiles
            )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// A method that were served without a row here would be served without asking who calls.
    #[test]
    fn every_method_of_every_service_has_a_row() {
        let sets = [
            proffer_wire::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut paths = BTreeSet::new();
        for set in sets {
            let files = FileDescriptorSet::decode(set).expect("a descriptor set").file;
            // Executors are served by agents, on sockets of their own.
            for file in files.into_iter().filter(|file| !file.package().starts_with("proffer.executor.")) {
                for service in &file.service {
                    let methods = service.method.iter();
                    paths.extend(
                        methods.map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())),
                    );
                }
            }
        }
        let rows: BTreeSet<String> = Rpc::ALL.iter().map(|rpc| rpc.path().to_owned()).collect();
        assert_eq!(paths, rows);
        assert!(Rpc::ALL.iter().all(|rpc| Rpc::of(rpc.path()) == Some(*rpc)));
    }
}
