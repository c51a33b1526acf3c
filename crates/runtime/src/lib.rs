//! What every controller shares: informers, work queues, leases, events, metrics, health endpoints.
