//! What one look at all seeds has found, and whom a command goes to by that: pure.

use std::collections::HashSet;

/// What came of asking one seed who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It leads.
    Leads,
    /// Another one does, or nobody that it knows of.
    Other(Option<String>),
    /// It doesn't take commands of this operator: it knows the certificate, or doesn't, and says so when it is asked again.
    Denied,
    /// It is of another cluster.
    Foreign,
    Nothing,
}

/// One look at all seeds.
#[derive(Debug, Default)]
pub(super) struct Round {
    leader: Option<String>,
    /// Said last to lead.
    named: Option<String>,
    denied: Option<String>,
    /// The first that answers.
    answers: Option<String>,
    foreign: Option<String>,
    silent: HashSet<String>,
    asked: Vec<String>,
}

/// Where no seed leads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Leaderless {
    /// Whom commands go to, to be told why.
    pub(super) seed: Option<String>,
    /// The one that others say leads, and that does not answer.
    pub(super) lost: Option<String>,
    /// All that were asked.
    pub(super) asked: Vec<String>,
}

impl Round {
    pub(super) fn take(&mut self, seed: String, said: Said) {
        self.asked.push(seed.clone());
        match said {
            Said::Leads => self.leader = Some(seed),
            Said::Other(named) => {
                self.named = named.or(self.named.take());
                self.answers.get_or_insert(seed);
            }
            Said::Denied => drop(self.denied.get_or_insert(seed)),
            Said::Foreign => drop(self.foreign.get_or_insert(seed)),
            Said::Nothing => drop(self.silent.insert(seed)),
        }
    }

    /// The seed that leads; where none is found and one refuses this operator, that one: what all others say is no answer
    /// to whoever may not ask.
    ///
    /// # Errors
    /// Nobody leads.
    pub(super) fn verdict(self) -> Result<String, Leaderless> {
        if let Some(seed) = self.leader.or(self.denied) {
            return Ok(seed);
        }
        // One that was silent in the round before is not asked again at the word of others.
        let is_silent = |named: &String| self.silent.contains(named) || !self.asked.contains(named);
        Err(Leaderless {
            lost: self.named.filter(is_silent),
            seed: self.answers.or(self.foreign),
            asked: self.asked,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(said: &[(&str, Said)]) -> Result<String, Leaderless> {
        let mut round = Round::default();
        for (seed, said) in said {
            round.take((*seed).to_owned(), said.clone());
        }
        round.verdict()
    }

    fn other(named: &str) -> Said {
        Said::Other((!named.is_empty()).then(|| named.to_owned()))
    }

    #[test]
    fn a_definite_refusal_is_hidden_by_nobody() {
        let revoked = [("a", other("b")), ("b", Said::Denied), ("c", other("b"))];
        assert_eq!(
            verdict(&revoked).as_deref(),
            Ok("b"),
            "the leader has refused, whatever its understudies say"
        );
        let foreign = [("a", Said::Nothing), ("b", Said::Foreign), ("c", Said::Nothing)];
        let found = verdict(&foreign).unwrap_err();
        assert_eq!(found.seed.as_deref(), Some("b"));
        assert_eq!(found.asked, ["a", "b", "c"]);
        let led = [("a", Said::Denied), ("b", Said::Foreign), ("c", Said::Leads)];
        assert_eq!(verdict(&led).as_deref(), Ok("c"), "who leads has let it in");
    }

    #[test]
    fn who_is_said_to_lead_and_says_nothing_is_lost() {
        let lost = |said: &[(&str, Said)]| verdict(said).unwrap_err().lost;
        assert_eq!(lost(&[("a", other("b")), ("b", Said::Nothing)]).as_deref(), Some("b"));
        assert_eq!(lost(&[("a", other("b"))]).as_deref(), Some("b"), "it was silent in the round before");
        assert_eq!(lost(&[("a", other("b")), ("b", other(""))]), None);
        let nobody = verdict(&[("a", Said::Nothing)]).unwrap_err();
        assert_eq!(nobody, Leaderless { seed: None, lost: None, asked: vec!["a".to_owned()] });
    }
}
