//! Connecting to real stores, with some faulty addresses: the error messages, the time that they
//! take, and that a good address is found among faulty ones.

mod faults;
mod pool;
mod several;
mod stand_in;
