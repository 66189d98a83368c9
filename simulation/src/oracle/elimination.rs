//! Linear forms in ordered unknowns, and Gaussian elimination over them.

use std::collections::BTreeMap;

use super::field::Element;

/// A linear form without its constant: what the adversary knows is its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form<V>(BTreeMap<V, Element>);

impl<V: Ord + Copy> Default for Form<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Ord + Copy> Form<V> {
    /// One unknown.
    pub fn of(unknown: V) -> Self {
        let mut form = Self::default();
        form.add(unknown, Element::ONE);
        form
    }

    /// Adds `factor` times an unknown.
    pub fn add(&mut self, unknown: V, factor: Element) {
        let sum = self.0.entry(unknown).or_insert(Element::ZERO);
        *sum += factor;
        if *sum == Element::ZERO {
            self.0.remove(&unknown);
        }
    }

    /// Adds `factor` times another form.
    pub fn combine(&mut self, other: &Self, factor: Element) {
        for (unknown, coefficient) in &other.0 {
            self.add(*unknown, *coefficient * factor);
        }
    }

    /// Unknowns with their coefficients, ascending.
    pub fn terms(&self) -> impl Iterator<Item = (V, Element)> + '_ {
        self.0.iter().map(|(unknown, factor)| (*unknown, *factor))
    }

    /// Whether every coefficient is zero.
    pub fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest unknown that occurs.
    pub fn leading(&self) -> Option<V> {
        self.0.keys().next().copied()
    }

    /// The form without the unknowns that are known.
    #[must_use]
    pub fn without(&self, known: impl Fn(&V) -> bool) -> Self {
        let rest = self.0.iter().filter(|(unknown, _)| !known(unknown));
        Self(rest.map(|(unknown, factor)| (*unknown, *factor)).collect())
    }

    fn scale(&mut self, factor: Element) {
        self.0
            .values_mut()
            .for_each(|value| *value = *value * factor);
    }
}

/// A space of forms as a row echelon basis: forms with different leading unknowns, each
/// with leading coefficient one.
#[derive(Clone, Debug)]
pub struct Space<V>(BTreeMap<V, Form<V>>);

impl<V: Ord + Copy> Default for Space<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Ord + Copy> FromIterator<Form<V>> for Space<V> {
    fn from_iter<I: IntoIterator<Item = Form<V>>>(forms: I) -> Self {
        let mut space = Self::default();
        forms.into_iter().for_each(|form| space.insert(form));
        space
    }
}

impl<V: Ord + Copy> Space<V> {
    /// Adds a form to the span.
    pub fn insert(&mut self, form: Form<V>) {
        let mut rest = self.leading_reduced(form);
        let Some(leading) = rest.leading() else {
            return;
        };
        if let Some(inverse) = rest.0.get(&leading).and_then(|factor| factor.inverse()) {
            rest.scale(inverse);
        }
        self.0.insert(leading, rest);
    }

    /// Subtracts basis forms until the leading unknown is none of theirs.
    fn leading_reduced(&self, mut form: Form<V>) -> Form<V> {
        while let Some(leading) = form.leading() {
            let (Some(pivot), Some(factor)) = (self.0.get(&leading), form.0.get(&leading).copied())
            else {
                break;
            };
            form.combine(pivot, -factor);
        }
        form
    }

    /// Whether a form lies in the span.
    pub fn contains(&self, form: &Form<V>) -> bool {
        self.leading_reduced(form.clone()).is_zero()
    }

    /// The forms of the span in which only unknowns from `first` on occur: every other
    /// unknown is eliminated, because smaller unknowns lead.
    #[must_use]
    pub fn from(&self, first: V) -> Self {
        let forms = self.0.range(first..);
        Self(forms.map(|(v, form)| (*v, form.clone())).collect())
    }

    /// The dimension.
    pub fn dimension(&self) -> usize {
        self.0.len()
    }

    /// The basis.
    pub fn forms(&self) -> impl Iterator<Item = &Form<V>> {
        self.0.values()
    }

    /// The reduced basis: no leading unknown occurs in another form. A single unknown is
    /// in the span if and only if it is a form of this basis.
    #[must_use]
    pub fn reduced(&self) -> Vec<Form<V>> {
        let mut done: Self = Self::default();
        for (leading, form) in self.0.iter().rev() {
            let mut form = form.clone();
            let later: Vec<(V, Element)> = form
                .terms()
                .filter(|(unknown, _)| unknown != leading && done.0.contains_key(unknown))
                .collect();
            for (unknown, factor) in later {
                if let Some(pivot) = done.0.get(&unknown) {
                    form.combine(pivot, -factor);
                }
            }
            done.0.insert(*leading, form);
        }
        done.0.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(terms: &[(u8, i64)]) -> Form<u8> {
        let mut form = Form::default();
        for (unknown, factor) in terms {
            let element = Element::new(factor.unsigned_abs());
            form.add(*unknown, if *factor < 0 { -element } else { element });
        }
        form
    }

    #[test]
    fn smaller_unknowns_are_eliminated_first() {
        // Three rows share the pads 0 and 1; only their sum is free of them.
        let rows = [
            form(&[(0, 1), (7, 1)]),
            form(&[(0, -1), (1, 1), (8, 1)]),
            form(&[(1, -1), (9, 1)]),
        ];
        let space: Space<u8> = rows.into_iter().collect();
        assert_eq!(space.dimension(), 3);
        let rest = space.from(7);
        let learnt: Vec<_> = rest.forms().cloned().collect();
        assert_eq!(learnt, [form(&[(7, 1), (8, 1), (9, 1)])]);
        assert!(rest.contains(&form(&[(7, 5), (8, 5), (9, 5)])));
        assert!(!rest.contains(&form(&[(7, 1)])));
    }

    #[test]
    fn the_reduced_basis_shows_single_unknowns() {
        let rows = [form(&[(7, 1), (8, 1), (9, 1)]), form(&[(8, 2), (9, 2)])];
        let space: Space<u8> = rows.into_iter().collect();
        let reduced = space.reduced();
        assert_eq!(reduced, [form(&[(7, 1)]), form(&[(8, 1), (9, 1)])]);
    }

    #[test]
    fn terms_that_cancel_are_gone() {
        let mut zero = form(&[(3, 1)]);
        zero.combine(&form(&[(3, 1)]), -Element::ONE);
        assert!(zero.is_zero());
        assert_eq!(
            form(&[(1, 2), (2, 3)]).without(|v| *v == 1),
            form(&[(2, 3)])
        );
    }
}
