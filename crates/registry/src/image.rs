//! The state as segments of a snapshot, back again, and its hash.

use std::sync::Arc;

use proffer_types::canonical::{Canonical, Sink};
use proffer_types::event::LaunchKind;
use proffer_types::image::{
    AdminAnswerImage, AnswerImage, FinishedImage, STATE_VERSION, Segment, SessionImage, SpecImage, TaskImage,
};
use proffer_types::{FrameworkId, LaunchId, RequestId, SessionId, SpecDigest, Task, TaskSpec};
use sha2::{Digest, Sha256};

use crate::check::Violation;
use crate::state::{AdminAnswer, Counts, Registry, Session, SpecUse};
use crate::table::Table;

/// Most records of a segment. A task is about 200 bytes: a segment stays well below the largest message.
const SEGMENT_RECORDS: usize = 1_000;
/// Most task outcomes in one segment of answers: an Accept's answer has up to ten thousand.
const SEGMENT_OUTCOMES: usize = 100_000;
/// Most encoded bytes of the specs in one segment.
const SEGMENT_SPEC_BYTES: u64 = 512 << 10;

/// Why a snapshot cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The snapshot does not begin with [`Segment::Meta`], or has it twice.
    #[error("the snapshot has no single beginning")]
    Meta,
    /// A newer version of the program wrote it.
    #[error("the snapshot has state version {found}, this program knows {STATE_VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// A record is there twice.
    #[error("the snapshot has {what} {id:x} twice")]
    Twice {
        /// Of which kind.
        what: &'static str,
        /// Its id.
        id: u128,
    },
    /// A stored answer belongs to no session.
    #[error("the snapshot has an answer of {session:?}, which is not in it")]
    UnknownSession {
        /// The session.
        session: SessionId,
    },
    /// A task's spec is not there.
    #[error("the snapshot has no {digest:?} of {framework:?}, which {launch:?} refers to")]
    UnknownSpec {
        /// The task.
        launch: LaunchId,
        /// Whose.
        framework: FrameworkId,
        /// The spec.
        digest: SpecDigest,
    },
    /// The records contradict one another.
    #[error("the snapshot contradicts itself")]
    Broken(#[from] Violation),
}

impl Registry {
    /// The state in segments, made one at a time as they are asked for. Take them of a clone to go on meanwhile.
    pub fn image(&self) -> impl Iterator<Item = Segment> + '_ {
        let agents = chunks(self.agents.values().cloned(), SEGMENT_RECORDS, one).map(Segment::Agents);
        let frameworks =
            chunks(self.frameworks.values().cloned(), SEGMENT_RECORDS, one).map(Segment::Frameworks);
        let sessions = self.sessions.iter().map(|(session, s)| session_image(*session, s));
        let sessions = chunks(sessions, SEGMENT_RECORDS, one).map(Segment::Sessions);
        let answers = self.sessions.iter().flat_map(|(session, s)| {
            let image = |(seq, answer): (&u64, &_)| AnswerImage {
                session: *session,
                seq: *seq,
                answer: Clone::clone(answer),
            };
            s.answers.iter().map(image)
        });
        let weight = |a: &AnswerImage| SEGMENT_OUTCOMES / SEGMENT_RECORDS + a.answer.outcomes.len();
        let answers = chunks(answers, SEGMENT_OUTCOMES, weight).map(Segment::Answers);
        let admin = self.admin_answers.iter().map(|(request, a)| AdminAnswerImage {
            request: *request,
            until: a.until,
            answer: a.answer.clone(),
        });
        let admin = chunks(admin, SEGMENT_RECORDS, one).map(Segment::AdminAnswers);
        let specs = self.specs.iter().map(|((framework, _), used)| (used.bytes, *framework, &used.spec));
        let specs = chunks(specs, SEGMENT_SPEC_BYTES as usize, |s| s.0 as usize + 600).map(|specs| {
            let image = |(_, framework, spec): (u64, FrameworkId, &Arc<TaskSpec>)| SpecImage {
                framework,
                spec: spec.clone(),
            };
            Segment::Specs(specs.into_iter().map(image).collect())
        });
        let tasks =
            chunks(self.tasks.values().map(TaskImage::from), SEGMENT_RECORDS, one).map(Segment::Tasks);
        let finished =
            self.finished.iter().map(|(number, task)| FinishedImage { number: *number, task: task.into() });
        let finished = chunks(finished, SEGMENT_RECORDS, one).map(Segment::Finished);
        std::iter::once(Segment::Meta(self.meta.clone()))
            .chain(agents)
            .chain(frameworks)
            .chain(sessions)
            .chain(answers)
            .chain(admin)
            .chain(specs)
            .chain(tasks)
            .chain(finished)
    }

    /// The state that an image was made of, with the same hash.
    ///
    /// Fails if segments are missing, doubled or contradict one another; the result has passed [`Registry::check`].
    pub fn from_image(segments: impl IntoIterator<Item = Segment>) -> Result<Self, Error> {
        let mut segments = segments.into_iter();
        let Some(Segment::Meta(meta)) = segments.next() else { return Err(Error::Meta) };
        if meta.state_version != STATE_VERSION {
            return Err(Error::Version { found: meta.state_version });
        }
        let mut registry = Self { meta, ..Self::default() };
        for segment in segments {
            registry.take(segment)?;
        }
        registry.index_settled();
        registry.check()?;
        Ok(registry)
    }

    fn take(&mut self, segment: Segment) -> Result<(), Error> {
        match segment {
            Segment::Meta(_) => return Err(Error::Meta),
            Segment::Agents(agents) => {
                for agent in agents {
                    once("agent", agent.id.0, self.index.instances.insert(agent.instance, agent.id))?;
                    once("agent", agent.id.0, self.agents.insert(agent.id, agent))?;
                }
            }
            Segment::Frameworks(frameworks) => {
                for framework in frameworks {
                    let id = framework.id;
                    self.index_framework(&framework);
                    once("framework", id.0, self.frameworks.insert(id, framework))?;
                }
            }
            Segment::Sessions(sessions) => {
                for image in sessions {
                    let SessionImage { session, framework, origin, done_below } = image;
                    let record = Session { framework, origin, done_below, answers: Table::default() };
                    once("session", session.0, self.sessions.insert(session, record))?;
                }
            }
            Segment::Answers(answers) => {
                for AnswerImage { session, seq, answer } in answers {
                    let record = self.sessions.get_mut(&session).ok_or(Error::UnknownSession { session })?;
                    once("answer", seq, record.answers.insert(seq, answer))?;
                }
            }
            Segment::AdminAnswers(answers) => {
                for AdminAnswerImage { request, until, answer } in answers {
                    self.index.admin_until.insert((until, request));
                    once(
                        "admin answer",
                        request,
                        self.admin_answers.insert(request, AdminAnswer { until, answer }),
                    )?;
                }
            }
            Segment::Specs(specs) => {
                for SpecImage { framework, spec } in specs {
                    let key = (framework, spec.digest());
                    let record = SpecUse { bytes: spec.encoded_bytes(), spec, tasks: 0, finished: 0 };
                    once("spec", framework.0, self.specs.insert(key, record))?;
                }
            }
            Segment::Tasks(tasks) => {
                for image in tasks {
                    let task = image.clone().into_task(self.spec_of(&image, |used| used.tasks += 1)?);
                    let id = task.launch_id;
                    self.index_task(&task);
                    once("task", id.0, self.tasks.insert(id, task))?;
                }
            }
            Segment::Finished(tasks) => {
                for FinishedImage { number, task: image } in tasks {
                    let task = image.clone().into_task(self.spec_of(&image, |used| used.finished += 1)?);
                    self.index_finished(number, &task);
                    once("finished task", number, self.finished.insert(number, task))?;
                }
            }
        }
        Ok(())
    }

    fn spec_of(
        &mut self,
        task: &TaskImage,
        count: impl FnOnce(&mut SpecUse),
    ) -> Result<Arc<TaskSpec>, Error> {
        let key = (task.framework, task.digest);
        let unknown = Error::UnknownSpec { launch: task.launch_id, framework: key.0, digest: key.1 };
        let used = self.specs.get_mut(&key).ok_or(unknown)?;
        count(used);
        Ok(used.spec.clone())
    }

    /// SHA-256 of the whole state in the order of its ids: equal on all replicas at an equal index, whatever their
    /// memory looks like and however they came by the state.
    pub fn state_hash(&self) -> [u8; 32] {
        let out = &mut Sha256::new();
        self.meta.encode(out);
        list(out, "agents", self.agents.len(), self.agents.values());
        list(out, "frameworks", self.frameworks.len(), self.frameworks.values());
        list(out, "sessions", self.sessions.len(), self.sessions.iter().map(|(id, s)| session_image(*id, s)));
        for session in self.sessions.values() {
            list(out, "answers", session.answers.len(), session.answers.iter());
        }
        let admin = self.admin_answers.iter().map(|(request, a)| (request, (a.until, &a.answer)));
        list(out, "admin answers", self.admin_answers.len(), admin);
        list(out, "specs", self.specs.len(), self.specs.iter().map(|(key, _)| key));
        list(out, "tasks", self.tasks.len(), self.tasks.values());
        list(out, "finished", self.finished.len(), self.finished.iter());
        out.clone().finalize().into()
    }

    // The indexes, one entry at a time.

    pub(crate) fn index_framework(&mut self, framework: &proffer_types::Framework) {
        if framework.origin != RequestId::default() {
            self.index.origins.insert((framework.owner.clone(), framework.origin), framework.id);
        }
        if let proffer_types::FrameworkState::Completed { at } = framework.state {
            self.index.completed.insert((at, framework.id));
        }
    }

    /// To be called when the tasks are indexed.
    pub(crate) fn index_settled(&mut self) {
        let completed: Vec<_> = self.index.completed.iter().copied().collect();
        let settled = completed.into_iter().filter(|(_, framework)| self.counts(*framework).tasks == 0);
        settled.collect::<Vec<_>>().into_iter().for_each(|key| self.index.settled.insert(key));
    }

    pub(crate) fn index_task(&mut self, task: &Task) {
        self.index.of_framework.insert((task.framework, task.launch_id));
        if !task.is_terminal() {
            self.index.live_on_agent.insert((task.agent, task.launch_id));
        }
        match &task.kind {
            LaunchKind::Executor(id) => {
                self.index.executors.insert((task.framework, task.agent, id.clone(), task.launch_id));
            }
            LaunchKind::Task | LaunchKind::TaskOf(_) => {
                self.index.names.insert((task.framework, task.task_id.clone()), task.launch_id);
            }
        }
        let Counts { tasks, finished } = self.counts(task.framework);
        self.index.counts.insert(task.framework, Counts { tasks: tasks + 1, finished });
    }

    pub(crate) fn index_finished(&mut self, number: u64, task: &Task) {
        self.index.finished_of_framework.insert((task.framework, number));
        let Counts { tasks, finished } = self.counts(task.framework);
        self.index.counts.insert(task.framework, Counts { tasks, finished: finished + 1 });
    }
}

/// The weight of records that count alike.
fn one<T>(_: &T) -> usize {
    1
}

fn session_image(session: SessionId, s: &Session) -> SessionImage {
    SessionImage { session, framework: s.framework, origin: s.origin, done_below: s.done_below }
}

fn once(what: &'static str, id: impl Into<Id>, new: bool) -> Result<(), Error> {
    if new { Ok(()) } else { Err(Error::Twice { what, id: id.into().0 }) }
}

struct Id(u128);

impl From<u64> for Id {
    fn from(id: u64) -> Self {
        Self(id.into())
    }
}

impl From<RequestId> for Id {
    fn from(id: RequestId) -> Self {
        Self(id.0)
    }
}

fn list<T: Canonical>(out: &mut dyn Sink, name: &str, len: usize, records: impl Iterator<Item = T>) {
    (name, len as u64).encode(out);
    records.for_each(|record| record.encode(out));
}

/// Cuts `items` into lists whose weights stay at or below `limit`, with at least one item each.
fn chunks<T>(
    items: impl Iterator<Item = T>,
    limit: usize,
    weight: impl Fn(&T) -> usize,
) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        let mut chunk = Vec::new();
        let mut sum = 0;
        while let Some(item) = items.next_if(|item| chunk.is_empty() || sum + weight(item) <= limit) {
            sum += weight(&item);
            chunk.push(item);
        }
        (!chunk.is_empty()).then_some(chunk)
    })
}
