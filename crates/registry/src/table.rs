//! The tables of the state: sorted, cheap to clone, sharing structure between clones.
//!
//! All that the registry needs of a table is in this interface, so that the persistent map below it can give way to
//! something denser.

use std::ops::RangeBounds;
use std::sync::Arc;

/// Records by key, in the order of the keys. A clone costs nothing and never changes.
pub(crate) struct Table<K, V> {
    map: imbl::OrdMap<K, Arc<V>>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { map: self.map.clone() }
    }
}

impl<K: Ord + Clone, V: Clone> Default for Table<K, V> {
    fn default() -> Self {
        Self { map: imbl::OrdMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key).map(|record| &**record)
    }

    /// The record for change; copied first if a clone of the table shares it.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key).map(Arc::make_mut)
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.map.contains_key(key)
    }

    /// Returns whether there was no such key before.
    pub(crate) fn insert(&mut self, key: K, record: V) -> bool {
        self.map.insert(key, Arc::new(record)).is_none()
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.map.remove(key).map(Arc::unwrap_or_clone)
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn first(&self) -> Option<(&K, &V)> {
        self.map.get_min().map(|(key, record)| (key, &**record))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> + '_ {
        self.map.iter().map(|(key, record)| (key, &**record))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> + '_ {
        self.map.values().map(|record| &**record)
    }

    pub(crate) fn range<'a>(
        &'a self,
        keys: impl RangeBounds<K> + 'a,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + 'a {
        self.map.range(keys).map(|(key, record)| (key, &**record))
    }
}

/// From one key to another; for indexes, whose values are small.
pub(crate) struct Lookup<K, V> {
    map: imbl::OrdMap<K, V>,
}

impl<K, V> Clone for Lookup<K, V> {
    fn clone(&self) -> Self {
        Self { map: self.map.clone() }
    }
}

impl<K: Ord + Clone, V: Copy> Default for Lookup<K, V> {
    fn default() -> Self {
        Self { map: imbl::OrdMap::new() }
    }
}

impl<K: Ord + Clone, V: Copy> Lookup<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.map.get(key).copied()
    }

    /// Returns whether there was no such key before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> bool {
        self.map.insert(key, value).is_none()
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.map.remove(key);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, V)> + '_ {
        self.map.iter().map(|(key, value)| (key, *value))
    }
}

/// Keys alone, in order.
pub(crate) struct Keys<K> {
    set: imbl::OrdSet<K>,
}

impl<K> Clone for Keys<K> {
    fn clone(&self) -> Self {
        Self { set: self.set.clone() }
    }
}

impl<K: Ord + Clone> Default for Keys<K> {
    fn default() -> Self {
        Self { set: imbl::OrdSet::new() }
    }
}

impl<K: Ord + Clone> Keys<K> {
    pub(crate) fn insert(&mut self, key: K) {
        self.set.insert(key);
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.set.remove(key);
    }

    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }

    pub(crate) fn first(&self) -> Option<&K> {
        self.set.get_min()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &K> + '_ {
        self.set.iter()
    }

    pub(crate) fn range<'a>(&'a self, keys: impl RangeBounds<K> + 'a) -> impl Iterator<Item = &'a K> + 'a {
        self.set.range(keys)
    }
}
