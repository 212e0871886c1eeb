//! Waits for a cluster, and for its first offer.
//!
//! ```text
//! cargo run -p proffer-client --example first_offer -- 127.0.0.1:5050
//! ```
//!
//! Started before the masters are, it shows how long a framework has to wait; `cargo xtask dev` uses it so.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Duration;

use proffer_client::{Event, Options, Scheduler};
use proffer_types::{FrameworkInfo, Role};

const WAIT: Duration = Duration::from_secs(50);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let masters = std::env::args().nth(1).ok_or("usage: first_offer MASTER[,MASTER…]")?;
    let masters: Vec<String> = masters.split(',').map(str::to_owned).collect();
    let info =
        FrameworkInfo { name: "first_offer".into(), roles: vec![Role::star()], ..FrameworkInfo::default() };
    let options = Options { connect_timeout: WAIT, ..Options::default() };
    let (handle, mut events) = Scheduler::connect(&masters, info, options).await?;
    let offer = async {
        loop {
            if let Event::Offers(offers) = events.next().await?
                && let Some(offer) = offers.into_iter().next()
            {
                return Ok::<_, Box<dyn std::error::Error>>(offer);
            }
        }
    };
    let offer = tokio::time::timeout(WAIT, offer).await.map_err(|_| "no offer came")??;
    println!("offer of {}", offer.resources);
    // The stream's end, which is what was asked for, may overtake the answer.
    let _ = handle.teardown().await;
    Ok(())
}
