//! The balancer and the application together, as users see them.

mod cratedb_init;
mod demo;
mod instances;
mod redis_cluster;
mod redis_scripts;
