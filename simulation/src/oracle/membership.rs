//! Runs from seeds in which the membership changes between rounds and in the middle of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use dcnet::time::{DAY_MS, Round};

use super::changes::{ALL, Change, HONEST};
use super::hostile::{Blocked, Hostile};
use super::moves::{MOVES, Move};
use super::scenario::{Dice, MINUTE, ROUNDS, Report, SECOND, Setting, choice, judge, setting_of};
use super::trace::Trace;
use crate::network::{Faults, Network};
use crate::world::at;

/// What a provider chooses with: a number below a bound, and the number of the round.
type Choice<'a, T> = &'a dyn Fn(&mut dyn FnMut(usize) -> usize, u64) -> T;

/// A net that more than doubles, or a larger one that shrinks.
fn changing(seed: u64, dice: &mut Dice) -> Setting {
    let (early, late) = match dice.below(3) {
        0 => (5 + dice.size(2), 6 + dice.size(3)),
        _ => (10 + dice.size(5), dice.size(3)),
    };
    setting_of(seed, early, late, dice)
}

/// An honest provider whose members change, and who lapse if they are away for a day.
pub fn honest(seed: u64) -> Report {
    let mut dice = Dice(seed ^ 0x9d4a_2b17);
    let mut setting = changing(seed, &mut dice);
    setting.world.provider.lapse_after = Some(Duration::from_millis(DAY_MS));
    let faults = Faults {
        loss: u32::try_from(dice.below(3)).unwrap_or(0),
        ..setting.faults
    };
    let mut network = Network::new(setting.world, faults, seed);
    let blocked = Rc::new(RefCell::new(setting.blocked));
    Blocked::rule(&blocked, &mut network);
    let mut trace = Trace::new(network);
    let mut happened = Vec::new();
    let joining = 3 + dice.below(ROUNDS - 2);
    let day = (dice.below(2) == 0).then(|| 4 + dice.below(ROUNDS - 3));
    let mut begun = 0;
    for minute in 2..=ROUNDS + 2 {
        // Half of the changes come while a round is between its submissions and its sum.
        let moment = match dice.below(2) {
            0 => dice.below(20 * SECOND),
            _ => dice.below(MINUTE),
        };
        trace.run_until(begun + minute * MINUTE + moment);
        if minute == joining {
            blocked.borrow_mut().ignored.clear();
        }
        if minute > 3 && dice.below(4) > 0 {
            let next = HONEST[dice.size(HONEST.len() as u64)];
            if next.happen(&mut trace, &setting.corrupted, &mut dice) {
                happened.push(format!("{next:?}"));
            }
        }
        let absent = dice.size(setting.count as u64);
        if day == Some(minute) {
            begun += a_day(&mut trace, absent);
            happened.push("a day".to_owned());
        } else if minute > 3 && dice.below(3) == 0 {
            trace.network.set_online(absent, false);
            trace.run_until(trace.network.now + 20 * SECOND);
            trace.network.set_online(absent, true);
        }
    }
    trace.run_until(begun + (ROUNDS + 5) * MINUTE);
    trace.network.check_aggregates();
    let story = format!(
        "an honest provider, {}; a network that loses {} %; {}; {} aggregates, all true",
        setting.words,
        faults.loss,
        happened.join(", "),
        trace.network.aggregates.len()
    );
    let (corrupted, count) = (setting.corrupted, setting.count);
    judge(seed, story, &trace, corrupted, count, &mut dice)
}

/// More than a day without readings, but for a few rounds shortly before its end that one
/// meter misses; how many milliseconds passed. The provider looks for absent members once an
/// hour.
fn a_day(trace: &mut Trace, absent: usize) -> u64 {
    const HOUR: u64 = 60 * MINUTE;
    let begin = trace.network.now;
    let end = begin + 26 * HOUR;
    trace.network.asleep.fill(true);
    // What is under way ends first; then nobody submits, so nothing goes unseen.
    trace.run_until(begin + 2 * MINUTE);
    trace.network.set_online(absent, false);
    trace.network.run_until(begin + 23 * HOUR);
    trace.record();
    trace.network.asleep.fill(false);
    trace.network.asleep[absent] = true;
    trace.run_until(begin + 23 * HOUR + 3 * MINUTE);
    trace.network.asleep.fill(true);
    trace.run_until(begin + 23 * HOUR + 5 * MINUTE);
    trace.network.run_until(end);
    trace.record();
    trace.network.asleep.fill(false);
    trace.network.set_online(absent, true);
    end - begin
}

/// A provider that lies while its members change.
pub fn hostile(seed: u64) -> Report {
    let lie = |dice: &mut dyn FnMut(usize) -> usize, _: u64| MOVES[dice(MOVES.len())];
    let change = |dice: &mut dyn FnMut(usize) -> usize, _: u64| ALL[dice(ALL.len())];
    hostile_with(seed, &lie, &change)
}

/// A provider that answers the same change with the same lie in every round but the first.
pub fn hostile_only(seed: u64, change: Change, lie: Move) -> Report {
    let lie = |_: &mut dyn FnMut(usize) -> usize, round: u64| match round {
        0 => Move::Truth,
        _ => lie,
    };
    hostile_with(seed, &lie, &|_, _| change)
}

fn hostile_with(seed: u64, lie: Choice<Move>, change: Choice<Change>) -> Report {
    let mut dice = Dice(seed ^ 0x1f83_d9ab);
    let mut setting = changing(seed, &mut dice);
    setting.blocked.rosters = true;
    let network = Network::new(setting.world, setting.faults, seed);
    let mut provider = Hostile::new(network, setting.blocked, setting.corrupted.clone(), seed);
    let mut happened = Vec::new();
    let joining = dice.below(ROUNDS);
    for number in 0..ROUNDS {
        let end = (number + 2) * MINUTE;
        // Before the submissions, among them, or between them and the roster.
        let moment = match dice.below(4) {
            0 => Some(end - 15 * SECOND),
            1 => Some(end + dice.below(10 * SECOND)),
            2 => Some(end + 11 * SECOND),
            _ => None,
        };
        if let Some(moment) = moment.filter(|_| number > 0) {
            provider.trace.run_until(moment);
            let next = change(&mut |bound| choice(&mut dice, bound), number);
            if next.happen(&mut provider.trace, &setting.corrupted, &mut dice) {
                happened.push(format!("{next:?}"));
            }
            // A meter that draws again is lapsed no more.
            provider.blocked.borrow_mut().draws = next == Change::FalseLapse && dice.below(3) > 0;
        }
        provider.trace.run_until(end + 12 * SECOND);
        let period = provider.trace.network.world.policy.period;
        let round = Round(period.round_at(at(end).utc).0 - 1);
        let next = lie(&mut |bound| choice(&mut dice, bound), number);
        provider.play(next, round);
        happened.push(format!("{next:?}"));
        provider.trace.run_until(end + 40 * SECOND);
        if number == joining {
            provider.let_in();
        }
    }
    let story = format!(
        "a hostile provider, {}: {}",
        setting.words,
        happened.join(", ")
    );
    let (corrupted, count) = (setting.corrupted, setting.count);
    judge(seed, story, &provider.trace, corrupted, count, &mut dice)
}
