//! How masters that know only each other's addresses become one cluster, once.
//!
//! A master with an empty data directory draws a nonce and stores it. It takes no part in raft until it has
//! heard the nonce of every one of its peers from that peer itself; the cluster's id is the hash of all
//! (id, nonce), so whoever forms, forms the same cluster. From then on a peer with another nonce or cluster
//! id is refused: a master whose directory was wiped has a new nonce, has forgotten its votes and
//! acknowledgements, and must not be mistaken for the one it was.
//!
//! Nonces are not taken from third parties: a node that formed with a stale nonce of a peer must not be able
//! to lead others to form without asking that peer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use proffer_wal::{Disk, read_sealed, write_sealed};
use sha2::{Digest, Sha256};

/// Drawn by a master when its data directory is first used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub [u8; 16]);

/// Names a cluster for good: the first 16 bytes of the SHA-256 of its masters' ids and nonces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

macro_rules! hex {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
hex!(Nonce);
hex!(ClusterId);

/// The masters of a cluster, as each of them stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Its masters.
    pub members: BTreeMap<u64, Nonce>,
}

impl Membership {
    /// The cluster of these masters.
    pub fn of(members: BTreeMap<u64, Nonce>) -> Membership {
        let mut hash = Sha256::new();
        for (id, nonce) in &members {
            hash.update(id.to_be_bytes());
            hash.update(nonce.0);
        }
        let digest = hash.finalize();
        let mut cluster_id = [0; 16];
        cluster_id.copy_from_slice(&digest[..16]);
        Membership { cluster_id: ClusterId(cluster_id), members }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cluster_id.0);
        out.put_u32_le(self.members.len() as u32);
        for (id, nonce) in &self.members {
            out.put_u64_le(*id);
            out.extend_from_slice(&nonce.0);
        }
    }

    fn decode(data: &mut &[u8]) -> Option<Membership> {
        let cluster_id = ClusterId(take_16(data)?);
        let count = data.try_get_u32_le().ok()?;
        let mut members = BTreeMap::new();
        for _ in 0..count {
            members.insert(data.try_get_u64_le().ok()?, Nonce(take_16(data)?));
        }
        Some(Membership { cluster_id, members })
    }
}

fn take_16(data: &mut &[u8]) -> Option<[u8; 16]> {
    let (head, rest) = data.split_at_checked(16)?;
    *data = rest;
    head.try_into().ok()
}

/// Who a master is: the content of the file `identity` in its data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub id: u64,
    /// Its nonce.
    pub nonce: Nonce,
    /// Its cluster, once formed.
    pub cluster: Option<Membership>,
}

/// Why a data directory is not this master's.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Damaged, unreadable, or of a newer version.
    #[error(transparent)]
    Disk(#[from] proffer_wal::Error),
    /// The directory is another master's.
    #[error(
        "{} belongs to master {found}, but this is master {given}: set --id {found}, or give this master a \
         data directory of its own",
        path.display()
    )]
    OtherId {
        /// The file that says so.
        path: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who wanted to use it.
        given: u64,
    },
    /// The directory is of a cluster with other masters.
    #[error(
        "{} belongs to cluster {cluster_id} of masters {found:?}, but --peers and --id name {given:?}: correct \
         --peers, or give this master an empty data directory",
        path.display()
    )]
    OtherPeers {
        /// The file that says so.
        path: PathBuf,
        /// The cluster it was formed in.
        cluster_id: ClusterId,
        /// That cluster's masters.
        found: Vec<u64>,
        /// The masters given.
        given: Vec<u64>,
    },
    /// There is a log, but nothing says whose.
    #[error(
        "{} has {found} but no file identity: it is not a whole data directory. Restore it from a copy, or \
         start with an empty one",
        dir.display()
    )]
    Incomplete {
        /// The data directory.
        dir: PathBuf,
        /// What was found in it.
        found: String,
    },
}

const MAGIC: [u8; 4] = *b"PRID";
const VERSION: u16 = 1;

fn path_of(dir: &Path) -> PathBuf {
    dir.join("identity")
}

impl Identity {
    /// Reads the identity in a data directory; in an empty one makes one with `nonce`. `voters` are all
    /// masters, this one included.
    ///
    /// # Errors
    /// A directory of another master or cluster, an incomplete, damaged or newer one; nothing is changed.
    pub fn open(
        disk: &dyn Disk,
        dir: &Path,
        id: u64,
        voters: &BTreeSet<u64>,
        nonce: Nonce,
    ) -> Result<Identity, IdentityError> {
        let path = path_of(dir);
        let Some((_, body)) = read_sealed(disk, &path, MAGIC, VERSION)? else {
            return Identity::create(disk, dir, id, nonce);
        };
        let unreadable = || proffer_wal::Error::Corrupt {
            path: path.clone(),
            offset: 16,
            what: "not an identity".to_owned(),
        };
        let identity = Identity::decode(&body).ok_or_else(unreadable)?;
        if identity.id != id {
            return Err(IdentityError::OtherId { path, found: identity.id, given: id });
        }
        if let Some(cluster) = &identity.cluster
            && !cluster.members.keys().eq(voters)
        {
            return Err(IdentityError::OtherPeers {
                path,
                cluster_id: cluster.cluster_id,
                found: cluster.members.keys().copied().collect(),
                given: voters.iter().copied().collect(),
            });
        }
        // A process that was killed may have left the file's name in the page cache only.
        sync_dir(disk, dir)?;
        Ok(identity)
    }

    fn create(disk: &dyn Disk, dir: &Path, id: u64, nonce: Nonce) -> Result<Identity, IdentityError> {
        let names = match disk.list(dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(io_error("list", dir, source)),
        };
        if let Some(found) = names.into_iter().find(|name| name == "log" || name == "snapshot") {
            return Err(IdentityError::Incomplete { dir: dir.to_owned(), found });
        }
        disk.create_dir_all(dir).map_err(|source| io_error("create directory", dir, source))?;
        let identity = Identity { id, nonce, cluster: None };
        identity.store(disk, dir)?;
        Ok(identity)
    }

    /// Stores the identity durably.
    pub fn store(&self, disk: &dyn Disk, dir: &Path) -> Result<(), proffer_wal::Error> {
        write_sealed(disk, &path_of(dir), MAGIC, VERSION, &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.id);
        out.extend_from_slice(&self.nonce.0);
        if let Some(cluster) = &self.cluster {
            cluster.encode(&mut out);
        }
        out
    }

    fn decode(mut data: &[u8]) -> Option<Identity> {
        let id = data.try_get_u64_le().ok()?;
        let nonce = Nonce(take_16(&mut data)?);
        let cluster = if data.is_empty() { None } else { Some(Membership::decode(&mut data)?) };
        data.is_empty().then_some(Identity { id, nonce, cluster })
    }
}

fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), IdentityError> {
    disk.sync_dir(dir).map_err(|source| io_error("sync directory", dir, source))
}

fn io_error(op: &'static str, path: &Path, source: io::Error) -> IdentityError {
    proffer_wal::Error::Io { op, path: path.to_owned(), source }.into()
}

/// What masters tell each other at the start of each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Who speaks.
    pub id: u64,
    /// To whom.
    pub to: u64,
    /// The speaker's nonce.
    pub nonce: Nonce,
    /// The speaker's cluster, once formed.
    pub cluster: Option<Membership>,
    /// The address at which the speaker wants to be reached by clients; opaque here.
    pub advertise: String,
}

impl Hello {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.id);
        out.put_u64_le(self.to);
        out.extend_from_slice(&self.nonce.0);
        out.put_u32_le(self.advertise.len() as u32);
        out.extend_from_slice(self.advertise.as_bytes());
        if let Some(cluster) = &self.cluster {
            cluster.encode(&mut out);
        }
        out
    }

    /// From bytes; `None` if they are no hello.
    pub fn decode(mut data: &[u8]) -> Option<Hello> {
        let id = data.try_get_u64_le().ok()?;
        let to = data.try_get_u64_le().ok()?;
        let nonce = Nonce(take_16(&mut data)?);
        let len = data.try_get_u32_le().ok()? as usize;
        let (advertise, mut rest) = data.split_at_checked(len)?;
        let advertise = String::from_utf8(advertise.to_vec()).ok()?;
        let cluster = if rest.is_empty() { None } else { Some(Membership::decode(&mut rest)?) };
        rest.is_empty().then_some(Hello { id, to, nonce, cluster, advertise })
    }
}

/// Why a peer is not spoken with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The hello was for another master: an address in `--peers` leads to the wrong place.
    #[error(
        "master {from} wants to speak with master {to}, but this is master {id}: check the addresses in --peers"
    )]
    OtherTarget {
        /// Who spoke.
        from: u64,
        /// Whom it meant.
        to: u64,
        /// Who this is.
        id: u64,
    },
    /// Not one of the masters.
    #[error("master {from} is not among the masters {members:?}: check --peers and --id on both")]
    Stranger {
        /// Who spoke.
        from: u64,
        /// Who belongs.
        members: Vec<u64>,
    },
    /// Formed elsewhere.
    #[error(
        "master {from} belongs to cluster {theirs}, this one to cluster {ours}: check --peers and --data-dir on both"
    )]
    OtherCluster {
        /// Who spoke.
        from: u64,
        /// Its cluster.
        theirs: ClusterId,
        /// Ours.
        ours: ClusterId,
    },
    /// Not the one that formed the cluster.
    #[error(
        "master {from} is not the one that formed cluster {cluster_id}: its data directory was emptied or \
         replaced. Restore that directory; with an empty one it must wait"
    )]
    OtherNonce {
        /// Who spoke.
        from: u64,
        /// The cluster.
        cluster_id: ClusterId,
    },
    /// This master is not the one that formed the peer's cluster.
    #[error(
        "this master's data directory is empty, but master {from} is in cluster {cluster_id}, formed with \
         another directory of this master: waiting. Restore that directory, or correct --peers"
    )]
    Wiped {
        /// Who spoke.
        from: u64,
        /// Its cluster.
        cluster_id: ClusterId,
    },
}

/// A master on its way into its cluster, and in it.
#[derive(Debug, Clone)]
pub struct Formation {
    identity: Identity,
    voters: BTreeSet<u64>,
    heard: BTreeMap<u64, Nonce>,
}

impl Formation {
    /// `voters` are all masters, this one included. A master alone is formed at once, but not yet stored.
    pub fn new(identity: Identity, voters: BTreeSet<u64>) -> Formation {
        let mut formation = Formation { identity, voters, heard: BTreeMap::new() };
        formation.heard.insert(formation.identity.id, formation.identity.nonce);
        formation.form_if_complete();
        formation
    }

    /// Who this master is by now.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The cluster, once formed.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.identity.cluster.as_ref().map(|cluster| cluster.cluster_id)
    }

    /// All masters.
    pub fn voters(&self) -> &BTreeSet<u64> {
        &self.voters
    }

    /// Whose nonce is still missing.
    pub fn waits_for(&self) -> Vec<u64> {
        self.voters.iter().filter(|id| !self.heard.contains_key(id)).copied().collect()
    }

    /// What to say to a peer.
    pub fn hello(&self, to: u64, advertise: &str) -> Hello {
        let Identity { id, nonce, cluster } = self.identity.clone();
        Hello { id, to, nonce, cluster, advertise: advertise.to_owned() }
    }

    /// What a peer said. `Ok(true)`: the cluster is formed by it, and the identity must be stored before
    /// anything else is said or done. `Ok(false)`: nothing new of that sort.
    ///
    /// # Errors
    /// A peer not to be spoken with.
    pub fn on_hello(&mut self, hello: &Hello) -> Result<bool, Refusal> {
        let from = hello.id;
        let id = self.identity.id;
        if hello.to != id {
            return Err(Refusal::OtherTarget { from, to: hello.to, id });
        }
        if from == id || !self.voters.contains(&from) {
            return Err(Refusal::Stranger { from, members: self.voters.iter().copied().collect() });
        }
        match (&self.identity.cluster, &hello.cluster) {
            (Some(ours), Some(theirs)) if ours.cluster_id != theirs.cluster_id => {
                let (theirs, ours) = (theirs.cluster_id, ours.cluster_id);
                Err(Refusal::OtherCluster { from, theirs, ours })
            }
            (Some(ours), _) if ours.members.get(&from) != Some(&hello.nonce) => {
                Err(Refusal::OtherNonce { from, cluster_id: ours.cluster_id })
            }
            (Some(_), _) => Ok(false),
            (None, Some(theirs))
                if theirs.members.get(&id) != Some(&self.identity.nonce)
                    || theirs.members.get(&from) != Some(&hello.nonce) =>
            {
                Err(Refusal::Wiped { from, cluster_id: theirs.cluster_id })
            }
            (None, _) => {
                self.heard.insert(from, hello.nonce);
                Ok(self.form_if_complete())
            }
        }
    }

    fn form_if_complete(&mut self) -> bool {
        let complete = self.identity.cluster.is_none() && self.heard.keys().eq(&self.voters);
        if complete {
            self.identity.cluster = Some(Membership::of(self.heard.clone()));
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proffer_wal::SimDisk;

    const DIR: &str = "/data";

    fn identity(id: u64) -> Identity {
        Identity { id, nonce: Nonce([id as u8; 16]), cluster: None }
    }

    fn voters() -> BTreeSet<u64> {
        BTreeSet::from([1, 2, 3])
    }

    fn formation(id: u64) -> Formation {
        Formation::new(identity(id), voters())
    }

    fn tell(from: &Formation, to: &mut Formation) -> Result<bool, Refusal> {
        let hello = from.hello(to.identity().id, "host:1");
        assert_eq!(Hello::decode(&hello.encode()), Some(hello.clone()));
        to.on_hello(&hello)
    }

    fn formed() -> [Formation; 3] {
        let [mut a, mut b, mut c] = [formation(1), formation(2), formation(3)];
        assert_eq!(tell(&a, &mut b), Ok(false));
        assert_eq!(tell(&c, &mut b), Ok(true));
        assert_eq!(tell(&b, &mut a), Ok(false));
        assert_eq!((a.cluster_id(), a.waits_for()), (None, vec![3]));
        assert_eq!(tell(&c, &mut a), Ok(true));
        assert_eq!(tell(&a, &mut c), Ok(false));
        assert_eq!(tell(&b, &mut c), Ok(true));
        assert!(
            a.cluster_id().is_some() && a.cluster_id() == b.cluster_id() && b.cluster_id() == c.cluster_id()
        );
        assert_eq!(tell(&a, &mut b), Ok(false));
        [a, b, c]
    }

    #[test]
    fn all_form_the_same_cluster_and_one_alone_at_once() {
        formed();
        let alone = Formation::new(identity(7), BTreeSet::from([7]));
        assert!(alone.cluster_id().is_some());
    }

    #[test]
    fn a_wiped_master_waits_and_is_refused() {
        let [mut a, b, c] = formed();
        let mut wiped = Formation::new(Identity { nonce: Nonce([9; 16]), ..identity(3) }, voters());
        let cluster_id = a.cluster_id().unwrap();
        assert_eq!(tell(&wiped, &mut a), Err(Refusal::OtherNonce { from: 3, cluster_id }));
        assert_eq!(tell(&a, &mut wiped), Err(Refusal::Wiped { from: 1, cluster_id }));
        assert_eq!(tell(&b, &mut wiped), Err(Refusal::Wiped { from: 2, cluster_id }));
        assert_eq!(wiped.cluster_id(), None);
        assert!(tell(&c, &mut a).is_ok(), "the true one is welcome");
    }

    /// The one dangerous order: a peer is wiped while the others form. Whoever knows the wiped peer's old
    /// nonce and whoever knows its new one end in different clusters, and at most one of these has a majority.
    #[test]
    fn a_wipe_while_forming_gives_no_second_majority() {
        let [mut a, b, mut c] = [formation(1), formation(2), formation(3)];
        tell(&a, &mut c).unwrap();
        tell(&b, &mut a).unwrap();
        assert_eq!(tell(&c, &mut a), Ok(true), "master 1 forms with the old nonce");
        let mut wiped = Formation::new(Identity { nonce: Nonce([9; 16]), ..identity(2) }, voters());
        assert_eq!(tell(&wiped, &mut c), Ok(true), "master 3 forms with the new nonce");
        assert_ne!(a.cluster_id(), c.cluster_id());
        tell(&c, &mut wiped).unwrap();
        assert!(tell(&a, &mut wiped).is_err());
        assert_eq!(wiped.cluster_id(), None, "so the second cluster has one master of three");
    }

    #[test]
    fn strangers_and_wrong_addresses_are_refused() {
        let mut a = formation(1);
        let stranger = Formation::new(identity(9), BTreeSet::from([1, 9]));
        assert!(matches!(tell(&stranger, &mut a), Err(Refusal::Stranger { from: 9, .. })));
        let misled = formation(2).hello(3, "");
        assert_eq!(a.on_hello(&misled), Err(Refusal::OtherTarget { from: 2, to: 3, id: 1 }));
        let other = Formation::new(Identity { nonce: Nonce([5; 16]), ..identity(2) }, BTreeSet::from([1, 2]));
        let mut elsewhere = Formation::new(identity(1), BTreeSet::from([1, 2]));
        tell(&other, &mut elsewhere).unwrap();
        let [_, mut b, _] = formed();
        let hello = elsewhere.hello(2, "");
        assert!(matches!(b.on_hello(&hello), Err(Refusal::OtherCluster { from: 1, .. })));
    }

    #[test]
    fn a_directory_serves_only_its_own_master_and_cluster() {
        let disk = SimDisk::new();
        let dir = Path::new(DIR);
        let open = |id, voters: &BTreeSet<u64>| Identity::open(&disk, dir, id, voters, Nonce([4; 16]));
        let fresh = open(1, &voters()).unwrap();
        assert_eq!(fresh, Identity { id: 1, nonce: Nonce([4; 16]), cluster: None });
        let [formed, ..] = formed();
        formed.identity().store(&disk, dir).unwrap();
        disk.crash(1);
        assert_eq!(&open(1, &voters()).unwrap(), formed.identity());
        let before = disk.files();
        assert!(matches!(open(2, &voters()), Err(IdentityError::OtherId { found: 1, given: 2, .. })));
        assert!(matches!(open(1, &BTreeSet::from([1, 2])), Err(IdentityError::OtherPeers { .. })));
        disk.flip_bit(&path_of(dir), 20, 1);
        let refused = open(1, &voters()).unwrap_err().to_string();
        assert!(refused.contains("/data/identity"), "{refused}");
        disk.flip_bit(&path_of(dir), 20, 1);
        assert_eq!(before, disk.files());
        disk.remove(&path_of(dir)).unwrap();
        disk.create_dir_all(&dir.join("log")).unwrap();
        assert!(matches!(open(1, &voters()), Err(IdentityError::Incomplete { .. })));
    }
}
