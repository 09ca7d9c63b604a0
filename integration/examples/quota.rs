//! Two agents with memory of their own, on a node of yours: `make run` in one terminal, and
//! `cargo run --package maos-client --example quota` in another (REDIS_STATE_URLS says where the node is, if it is
//! elsewhere). It checks what it claims. The partitions stay; `maosctl partition list` shows them.

use std::error::Error;

use maos_client::{Client, Code, Config, PartitionOptions, SetOptions};

type Done = Result<(), Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Done {
    let client = Client::connect(Config::from_env()?).await?;
    one_agent_fills_its_memory_and_the_other_goes_on(&client).await
}

/// Who writes more than it was given is told so and changes nothing; nobody else notices.
pub async fn one_agent_fills_its_memory_and_the_other_goes_on(client: &Client) -> Done {
    // 64 kilobytes each. To ask again gives what is there already.
    for agent in ["hoarder", "clerk"] {
        let own = PartitionOptions::new()
            .prefix(format!("{agent}:"))
            .history(1);
        let own = client
            .allocate_memory_partition(agent, 64 << 10, own)
            .await?;
        println!(
            "{agent} has {} bytes, of which {} are free",
            own.quota,
            own.free()
        );
    }

    let page = vec![b'x'; 4 << 10];
    let by = |agent: &str| SetOptions::new().by(agent);
    let mut kept = 0;
    let refusal = loop {
        let key = format!("hoarder:page:{kept}");
        match client.set(key, &page, by("hoarder")).await {
            Ok(_) => kept += 1,
            Err(error) if error.code() == Some(Code::Quota) => break error,
            Err(error) => return Err(error.into()),
        }
    };
    println!("the hoarder keeps {kept} pages, and is told: {refusal}");
    let full = client.partition("partition:hoarder").info().await?;
    assert!(full.used <= full.quota && full.free() < 8 << 10);
    assert!(full.refused >= 1);

    // The clerk has room, and the hoarder cannot take it.
    client.set("clerk:ledger", &page, by("clerk")).await?;
    let stolen = client.set("clerk:page", &page, by("hoarder")).await;
    let stolen = stolen.expect_err("the clerk's memory is the clerk's");
    assert_eq!(stolen.code(), Some(Code::NoPerm));
    println!("the clerk goes on, and the hoarder cannot write there: {stolen}");

    // What gets smaller may always be written, and what it leaves is free.
    client.set("hoarder:page:0", "", by("hoarder")).await?;
    client
        .set("hoarder:page:last", &page, by("hoarder"))
        .await?;
    println!("the hoarder threw a page away, and has room for another one");

    let pool = client.pool().await?;
    assert_eq!(pool.free, pool.bytes - pool.reserved);
    println!("the pool has {} bytes left for others", pool.free);
    Ok(())
}
