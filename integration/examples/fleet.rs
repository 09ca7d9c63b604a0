//! Three things that agents do together, on a node of yours: `make run` in one terminal, and
//! `cargo run --package maos-client --example fleet` in another (REDIS_STATE_URLS says where the node is, if it is
//! elsewhere). Each checks what it claims.

use std::error::Error;

use maos_client::{
    Client, Code, Config, How, IncrementOptions, MergeOptions, Merged, Operation, SetOptions,
    StateKey, Strategy, Transaction,
};
use serde_json::{json, Value};

type Done = Result<(), Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Done {
    let client = Client::connect(Config::from_env()?).await?;
    two_agents_edit_one_plan(&client).await?;
    fifty_workers_share_a_budget(&client).await?;
    a_task_changes_hands(&client).await?;
    Ok(())
}

/// Both have read the same version, each changes its own step, and both edits survive.
pub async fn two_agents_edit_one_plan(client: &Client) -> Done {
    let key = StateKey::new("shop", "plan", "7");
    let plan = json!({"goal": "ship it", "steps": {"build": "open", "test": "open"}});
    let base = client.set_json(&key, &plan, SetOptions::new()).await?;

    let edit = |step: &str| {
        let mut mine = plan.clone();
        mine["steps"][step] = "done".into();
        let options = MergeOptions::new(Strategy::Merge).by(step);
        client.merge(&key, base, mine, options)
    };
    let (builder, tester) = tokio::join!(edit("build"), edit("test"));
    let decided = [builder?, tester?];

    let now = client
        .get_json::<Value>(&key)
        .await?
        .expect("the plan")
        .value;
    assert_eq!(now["steps"], json!({"build": "done", "test": "done"}));
    let merged = |m: &Merged| matches!(m, Merged::Applied(_, How::Merged));
    assert!(decided.iter().any(merged));
    println!("two agents edited one plan, and both edits are there: {now}");

    // Where both mean the same part, the later one is told which.
    let mut other = plan.clone();
    other["steps"]["build"] = "failed".into();
    let options = MergeOptions::new(Strategy::Merge).by("auditor");
    let Merged::Conflict(conflict) = client.merge(&key, base, other, options).await? else {
        return Err("two different words about one step must not be merged".into());
    };
    assert_eq!(conflict.paths, ["/steps/build"]);
    println!(
        "a third one is told where it conflicts: {:?}",
        conflict.paths
    );
    Ok(())
}

/// Each takes what it needs for as long as there is enough; nobody ever overdraws.
pub async fn fifty_workers_share_a_budget(client: &Client) -> Done {
    const TOKENS: i64 = 10_000;
    let key = StateKey::new("shop", "budget", "7");
    let budget = json!({"team": "checkout", "tokens": TOKENS});
    client.set_json(&key, &budget, SetOptions::new()).await?;

    let mut workers = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (client, key) = (client.clone(), key.clone());
        workers.spawn(async move {
            let price = 10 + n % 7;
            let mut spent = 0;
            loop {
                let options = IncrementOptions::new().path("/tokens").min(0);
                match client.increment(&key, -price, options).await {
                    Ok(left) => assert!(left.integer() >= Some(0)),
                    Err(error) if error.code() == Some(Code::Limit) => return Ok(spent),
                    Err(error) => return Err(error),
                }
                spent += price;
            }
        });
    }
    let mut spent = 0;
    while let Some(worker) = workers.join_next().await {
        spent += worker??;
    }

    let left = client
        .get_json::<Value>(&key)
        .await?
        .expect("the budget")
        .value;
    let left = left["tokens"].as_i64().expect("a number");
    assert_eq!(spent + left, TOKENS);
    assert!((0..10).contains(&left), "nobody could have taken more");
    println!("fifty workers have spent {spent} of {TOKENS} tokens, and {left} are left");
    Ok(())
}

/// The task gets another owner, the queue of the one gets shorter and that of the other longer: all of it or
/// nothing, and of those who want it one.
pub async fn a_task_changes_hands(client: &Client) -> Done {
    let (task, log) = ("{shop:42}:task", "{shop:42}:handovers");
    let queue = |worker: &str| format!("{{shop:42}}:open:{worker}");
    let open = json!({"title": "Ship v1.4", "owner": "worker-1"});
    let seen = client.set_json(task, &open, SetOptions::new()).await?;
    client
        .set(queue("worker-1"), "1", SetOptions::new())
        .await?;
    let before = client.get_json::<u64>(log).await?.map_or(0, |n| n.value);

    let take = |worker: String| {
        let owner = json!({"owner": worker});
        let client = client.clone();
        async move {
            let less = IncrementOptions::new().min(0);
            let hand_over = Transaction::new(Operation::patch(task, &owner)?)
                .and(Operation::increment_with(queue("worker-1"), -1, less))
                .and(Operation::increment(queue(&worker), 1))
                .and(Operation::increment(log, 1))
                .if_version(task, seen)
                .or_else(Operation::get(task))
                .by(worker);
            client.transact(&hand_over).await
        }
    };
    let all = (2..10).map(|n| take(format!("worker-{n}")));
    let mut won = vec![];
    for done in futures_util::future::join_all(all).await {
        let done = done?;
        if done.held {
            won.push(done.version);
        } else {
            let now = done.value::<Value>(0)?.expect("the task");
            assert_ne!(now["owner"], "worker-1", "the losers see who has it");
        }
    }

    assert_eq!(won.len(), 1);
    let now = client.get_json::<Value>(task).await?.expect("the task");
    assert_eq!(now.version, won[0]);
    let owner = now.value["owner"].as_str().expect("an owner").to_owned();
    let count = |n: Option<maos_client::StateValue<u64>>| n.map_or(0, |n| n.value);
    assert_eq!(count(client.get_json(queue("worker-1")).await?), 0);
    assert!(count(client.get_json(queue(&owner)).await?) >= 1);
    assert_eq!(count(client.get_json(log).await?), before + 1);
    println!("eight workers wanted one task: {owner} has it, and all counts are right");
    Ok(())
}
