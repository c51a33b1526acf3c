//! Quantities, selectors, topology, access modes and names: pure, no async.
