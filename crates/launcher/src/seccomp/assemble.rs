//! From decisions per system call to a program of classic BPF.
//!
//! The kernel runs the program once for every system call number when it is installed (to learn which it need not
//! ask about again), so that depth costs more than length: numbers are found by a balanced tree. All its jumps
//! lead forward, hence it is built from its end.

use std::collections::BTreeMap;

use super::table;
use super::{Comparison, Condition, KILL_PROCESS};

// Instruction codes of <linux/bpf_common.h>.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Numbers from here on are calls of the x32 ABI, which x86_64 kernels serve under the same architecture.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Tried in order: the value returned when every condition holds.
    pub(super) clauses: Vec<(Vec<Condition>, u32)>,
    /// Returned when no clause applied.
    pub(super) otherwise: u32,
}

/// How many instructions from the end an instruction stands.
type Label = usize;

#[derive(Default)]
struct Assembler {
    /// In reverse order.
    reversed: Vec<libc::sock_filter>,
    returns: BTreeMap<u32, Label>,
}

/// Assembles the program: `decisions` by number, `otherwise` for those below `beyond` that are not listed, and
/// `unknown` from `beyond` on.
pub(super) fn assemble(
    decisions: &BTreeMap<u32, Decision>,
    otherwise: u32,
    beyond: u32,
    unknown: u32,
) -> Vec<libc::sock_filter> {
    let plain = |value| Decision { clauses: Vec::new(), otherwise: value };
    // Where each run of numbers with the same decision begins.
    let mut starts: Vec<(u32, Decision)> = vec![(0, plain(otherwise))];
    let mut begin = |number: u32, decision: Decision| match starts.last_mut() {
        Some((last, held)) if *last == number => *held = decision,
        Some((_, held)) if *held == decision => {}
        _ => starts.push((number, decision)),
    };
    for (&number, decision) in decisions.range(..beyond) {
        begin(number, decision.clone());
        if !decisions.contains_key(&(number + 1)) {
            begin(number + 1, plain(otherwise));
        }
    }
    begin(beyond, plain(unknown));
    #[cfg(target_arch = "x86_64")]
    begin(X32, plain(KILL_PROCESS));

    let mut assembler = Assembler::default();
    let tree = assembler.tree(&starts);
    assembler.fall_into(tree);
    let number = assembler.push(LOAD, NUMBER, 0, 0);
    // Another architecture has other numbers.
    let foreign = assembler.returning(KILL_PROCESS);
    let native = assembler.jump(JUMP_EQUAL, table::AUDIT_ARCH, number, foreign);
    assembler.fall_into(native);
    assembler.push(LOAD, ARCHITECTURE, 0, 0);
    assembler.reversed.reverse();
    assembler.reversed
}

impl Assembler {
    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Label {
        self.reversed.push(libc::sock_filter { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// The distance from the next instruction to be pushed.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - 1 - label
    }

    /// Lets what is pushed next continue at `label`.
    fn fall_into(&mut self, label: Label) {
        if self.distance(label) > 0 {
            self.push(JUMP, self.distance(label) as u32, 0, 0);
        }
    }

    /// A label for `label` that a conditional jump reaches even after another instruction.
    fn near(&mut self, label: Label) -> Label {
        if self.distance(label) < 254 { label } else { self.push(JUMP, self.distance(label) as u32, 0, 0) }
    }

    fn jump(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let yes = self.near(yes);
        let no = self.near(no);
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(code, k, jt, jf)
    }

    fn returning(&mut self, value: u32) -> Label {
        match self.returns.get(&value) {
            Some(&label) if self.distance(label) < 254 => label,
            _ => {
                let label = self.push(RETURN, value, 0, 0);
                self.returns.insert(value, label);
                label
            }
        }
    }

    fn tree(&mut self, starts: &[(u32, Decision)]) -> Label {
        if let [(_, decision)] = starts {
            return self.decide(decision);
        }
        let (low, high) = starts.split_at(middle(starts));
        let upper = self.tree(high);
        let lower = self.tree(low);
        self.jump(JUMP_GREATER_OR_EQUAL, high[0].0, upper, lower)
    }

    fn decide(&mut self, decision: &Decision) -> Label {
        let mut next = self.returning(decision.otherwise);
        for (conditions, value) in decision.clauses.iter().rev() {
            let mut holds = self.returning(*value);
            for condition in conditions.iter().rev() {
                holds = self.compare(condition, holds, next);
            }
            next = holds;
        }
        next
    }

    /// Compares a 64-bit argument in two halves.
    fn compare(&mut self, condition: &Condition, yes: Label, no: Label) -> Label {
        let Condition { argument, comparison, value } = *condition;
        let (high, low) = ((value >> 32) as u32, value as u32);
        match comparison {
            Comparison::Equal => self.halves(argument, (JUMP_EQUAL, low), None, (yes, no, no), high),
            Comparison::NotEqual => self.halves(argument, (JUMP_EQUAL, low), None, (no, yes, yes), high),
            Comparison::Greater => self.halves(argument, (JUMP_GREATER, low), Some(yes), (yes, no, no), high),
            Comparison::GreaterOrEqual => {
                self.halves(argument, (JUMP_GREATER_OR_EQUAL, low), Some(yes), (yes, no, no), high)
            }
            Comparison::Less => {
                self.halves(argument, (JUMP_GREATER_OR_EQUAL, low), Some(no), (no, yes, yes), high)
            }
            Comparison::LessOrEqual => {
                self.halves(argument, (JUMP_GREATER, low), Some(no), (no, yes, yes), high)
            }
            Comparison::AnyBit => {
                let below = self.jump(JUMP_SET, low, yes, no);
                let below = self.push_before(LOAD, low_half(argument), below);
                if high == 0 {
                    return below;
                }
                let above = self.jump(JUMP_SET, high, yes, below);
                self.push_before(LOAD, high_half(argument), above)
            }
            Comparison::Masked(mask) => {
                let below = self.jump(JUMP_EQUAL, low, yes, no);
                let below = self.push_before(AND, mask as u32, below);
                let below = self.push_before(LOAD, low_half(argument), below);
                let above = self.jump(JUMP_EQUAL, high, below, no);
                let above = self.push_before(AND, (mask >> 32) as u32, above);
                self.push_before(LOAD, high_half(argument), above)
            }
        }
    }

    /// `ends` are where it goes when the test of the lower half holds, when it fails, and when the upper halves
    /// differ; `greater` when the argument's upper half is the greater one, if that is a different place.
    fn halves(
        &mut self,
        argument: u8,
        (code, low): (u16, u32),
        greater: Option<Label>,
        (yes, no, differ): (Label, Label, Label),
        high: u32,
    ) -> Label {
        let below = self.jump(code, low, yes, no);
        let below = self.push_before(LOAD, low_half(argument), below);
        let mut above = self.jump(JUMP_EQUAL, high, below, differ);
        if let Some(greater) = greater {
            above = self.jump(JUMP_GREATER, high, greater, above);
        }
        self.push_before(LOAD, high_half(argument), above)
    }

    fn push_before(&mut self, code: u16, k: u32, next: Label) -> Label {
        self.fall_into(next);
        self.push(code, k, 0, 0)
    }
}

/// Where to split so that about as many numbers lie on either side: each is asked about once, however rare.
fn middle(starts: &[(u32, Decision)]) -> usize {
    // Beyond, there are no calls to ask about.
    let highest = table::highest() + 1;
    let (first, last) = (starts[0].0.min(highest), starts[starts.len() - 1].0.min(highest));
    let half = first + (last - first) / 2;
    starts.partition_point(|(start, _)| *start <= half).clamp(1, starts.len() - 1)
}

fn low_half(argument: u8) -> u32 {
    ARGUMENTS + 8 * u32::from(argument) + if cfg!(target_endian = "big") { 4 } else { 0 }
}

fn high_half(argument: u8) -> u32 {
    ARGUMENTS + 8 * u32::from(argument) + if cfg!(target_endian = "big") { 0 } else { 4 }
}
