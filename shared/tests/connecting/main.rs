//! Connecting to real stores, some of whose addresses are not as they should be: what is said, how
//! soon, and that a good address is found among bad ones.

mod faults;
mod pool;
mod several;
mod stand_in;
