//! Partitions on the command line, and the view that refreshes.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime};

use maos_client::{
    Applied, Client, Error, PartitionAudit, PartitionInfo, PartitionOptions, PartitionType, Pool,
    Strategy, Version,
};
use serde_json::{json, Map, Value};
use terminal_size::{terminal_size, Height, Width};

use crate::cli::{Partition, Terms};
use crate::line::text_or_base64;
use crate::lock::fields;
use crate::show::Show;
use crate::{End, Failure};

pub async fn run(client: &Client, show: Show, what: Partition) -> Result<End, Failure> {
    match what {
        Partition::Create { name, bytes, terms } => {
            let partition = client.partition(&name).quota(bytes);
            let made = partition.options(options(terms)?).create().await?;
            defined(show, &name, made)?;
        }
        Partition::Alter {
            name,
            bytes,
            terms,
            no_prefix,
        } => {
            let mut terms = options(terms)?;
            terms = if no_prefix { terms.no_prefix() } else { terms };
            let mut partition = client.partition(&name).options(terms);
            partition = bytes.map_or(partition.clone(), |n| partition.quota(n));
            defined(show, &name, partition.alter().await?)?;
        }
        Partition::Drop { name, force } => {
            let partition = client.partition(&name);
            let keys = match force {
                true => partition.drop_forced().await?,
                false => partition.drop_it().await.map(|()| 0)?,
            };
            if show.json {
                show.object(fields([("name", json!(name)), ("keys", json!(keys))]))?;
            } else {
                eprintln!("{name} is dropped; it had {}", counted(keys, "key"));
            }
        }
        Partition::List { agent } => {
            let all = client.partitions(agent.as_deref()).await?;
            if show.json {
                for partition in &all {
                    show.object(object(show, partition))?;
                }
            } else {
                list(&mut io::stdout().lock(), &all)?;
            }
        }
        Partition::Info { name, audit, wait } => {
            let partition = client.partition(&name);
            let info = match audit {
                false => partition.info().await?,
                true => partition.audit(wait).await?.ok_or_else(too_late)?,
            };
            match show.json {
                true => show.object(object(show, &info))?,
                false => details(&mut io::stdout().lock(), show, &info)?,
            }
        }
        Partition::Pool => {
            let pool = client.pool().await?;
            match show.json {
                true => show.object(pool_object(&pool))?,
                false => writeln!(io::stdout().lock(), "{}", pool_line(&pool))?,
            }
        }
        Partition::Top {
            interval,
            once,
            agent,
        } => top(client, show, interval, once, agent.as_deref()).await?,
    }
    Ok(End::Done)
}

fn too_late() -> Failure {
    Failure::Client(Error::Transport {
        text: "the audit goes on; `partition info` shows later what came of it".to_owned(),
        applied: Applied::No,
        attempts: 1,
        source: None,
    })
}

fn options(terms: Terms) -> Result<PartitionOptions, Failure> {
    let mut options = PartitionOptions::new();
    if let Some(agent) = terms.agent {
        options = options.dedicated_to(agent);
        let other = |t: &PartitionType| *t != PartitionType::AgentDedicated;
        if terms.partition_type.as_ref().is_some_and(other) {
            let text = "--agent goes with --type agent_dedicated";
            return Err(Failure::Input(text.to_owned()));
        }
    }
    options = given(
        options,
        terms.partition_type,
        PartitionOptions::partition_type,
    );
    for prefix in &terms.prefix {
        options = options.prefix(prefix);
    }
    options = given(options, terms.ttl, PartitionOptions::ttl);
    options = given(options, terms.onfull, PartitionOptions::on_full);
    options = given(options, terms.onconflict, PartitionOptions::on_conflict);
    options = given(options, terms.history, PartitionOptions::history);
    options = given(options, terms.maxage, PartitionOptions::max_age);
    Ok(given(options, terms.maxvalue, PartitionOptions::max_value))
}

fn given<T>(
    options: PartitionOptions,
    value: Option<T>,
    set: impl FnOnce(PartitionOptions, T) -> PartitionOptions,
) -> PartitionOptions {
    match value {
        Some(value) => set(options, value),
        None => options,
    }
}

fn defined(show: Show, name: &str, version: Version) -> io::Result<()> {
    if show.json {
        return show.object(fields([
            ("name", json!(name)),
            ("version", json!(version.0)),
            ("time", json!(show.time(version))),
        ]));
    }
    writeln!(io::stdout().lock(), "{version}  ({})", show.time(version))
}

// ---------------------------------------------------------------------------------------------
// For programs
// ---------------------------------------------------------------------------------------------

fn object(show: Show, info: &PartitionInfo) -> Map<String, Value> {
    let millis = |time: Option<Duration>| time.map(|t| t.as_millis() as u64);
    let audit = |audit: &PartitionAudit| {
        json!({
            "running": audit.running,
            "bytes": audit.bytes,
            "keys": audit.keys,
            "drift": audit.drift,
            "ended_ms": audit.ended.map(unix_millis),
        })
    };
    let name = match text_or_base64(&info.name) {
        (Some(text), _) => ("name", json!(text)),
        (None, base64) => ("name_b64", json!(base64)),
    };
    let prefixes = info.prefixes.iter().map(|p| String::from_utf8_lossy(p));
    fields([
        name,
        ("type", json!(info.partition_type.word())),
        ("agent", json!(info.agent)),
        ("quota", json!(info.quota)),
        ("used", json!(info.used)),
        ("free", json!(info.free())),
        ("fullness", json!(info.fullness())),
        ("keys", json!(info.keys)),
        ("used_here", json!(info.used_here)),
        ("keys_here", json!(info.keys_here)),
        ("high_water", json!(info.high_water)),
        ("refused", json!(info.refused)),
        ("evicted", json!(info.evicted)),
        ("prefixes", prefixes.map(|p| json!(p)).collect()),
        ("onfull", json!(info.on_full.word())),
        ("onconflict", json!(info.on_conflict.as_ref().map(strategy))),
        ("history", json!(info.history)),
        ("max_age_ms", json!(millis(info.max_age))),
        ("max_value", json!(info.max_value)),
        ("key_ttl_ms", json!(millis(info.key_ttl))),
        ("expires_in_ms", json!(millis(info.expires_in))),
        ("version", json!(info.version.0)),
        ("time", json!(show.time(info.version))),
        ("audit", json!(info.audit.as_ref().map(audit))),
    ])
}

fn pool_object(pool: &Pool) -> Map<String, Value> {
    fields([
        ("bytes", json!(pool.bytes)),
        ("reserved", json!(pool.reserved)),
        ("free", json!(pool.free)),
        ("used", json!(pool.used)),
        ("keys", json!(pool.keys)),
        ("partitions", json!(pool.partitions)),
    ])
}

fn unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as u64
}

fn strategy(strategy: &Strategy) -> String {
    match strategy {
        Strategy::Reject => "reject".to_owned(),
        Strategy::Lww => "lww".to_owned(),
        Strategy::Fww => "fww".to_owned(),
        Strategy::Merge => "merge".to_owned(),
        Strategy::Function(name) => format!("function:{name}"),
    }
}

// ---------------------------------------------------------------------------------------------
// For people
// ---------------------------------------------------------------------------------------------

/// In the units in which sizes are typed, short.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kb", "mb", "gb", "tb", "pb"];
    if bytes < 1 << 10 {
        return format!("{bytes}b");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be shown as 1024.0 is one of the next unit.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1}{}", UNITS[unit])
}

/// So many of them.
pub fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

/// Bytes, and a short form for those that are many.
pub fn exactly(bytes: u64) -> String {
    match bytes < 1 << 10 {
        true => counted(bytes, "byte"),
        false => format!("{bytes} bytes ({})", size(bytes)),
    }
}

fn percent(part: f64) -> String {
    // What has any room left is not shown as full, and what holds anything not as empty.
    let shown = match part {
        part if part > 0.0 && part < 0.01 => 1.0,
        part if part < 1.0 => (100.0 * part).floor(),
        part => (100.0 * part).round(),
    };
    format!("{shown}%")
}

/// As it may be shown in a terminal: names are whatever somebody made them.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

fn pool_line(pool: &Pool) -> String {
    format!(
        "pool  {} of {} reserved ({}), {} free; {} used by {} in {}",
        size(pool.reserved),
        size(pool.bytes),
        percent(pool.fullness()),
        size(pool.free),
        size(pool.used),
        counted(pool.keys, "key"),
        counted(pool.partitions, "partition")
    )
}

fn list(out: &mut impl Write, all: &[PartitionInfo]) -> io::Result<()> {
    if all.is_empty() {
        return writeln!(io::stderr().lock(), "there are no partitions");
    }
    let mut rows =
        vec![["name", "type", "used", "quota", "full", "keys", "for"].map(str::to_owned)];
    for p in all {
        let prefixes = p.prefixes.iter().map(|prefix| printable(prefix) + "*");
        let agent = p.agent.as_ref().map(|a| printable(a.as_bytes()));
        let whose: Vec<_> = agent.into_iter().chain(prefixes).collect();
        rows.push([
            printable(&p.name),
            p.partition_type.word().to_owned(),
            size(p.used),
            size(p.quota),
            percent(p.fullness()),
            p.keys.to_string(),
            whose.join(" "),
        ]);
    }
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let mut line = String::new();
        for (n, (cell, width)) in row.iter().zip(widths).enumerate() {
            match n {
                0 | 1 | 6 => line += &format!("{cell:<width$}  "),
                _ => line += &format!("{cell:>width$}  "),
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn details(out: &mut impl Write, show: Show, info: &PartitionInfo) -> io::Result<()> {
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12}{text}");
    let or = |text: Option<String>, otherwise: &str| text.unwrap_or_else(|| otherwise.to_owned());
    const SETTING: &str = "as the server's settings say";
    line("name", printable(&info.name))?;
    let whose = info.agent.as_ref();
    let whose = whose.map_or_else(String::new, |a| format!(", to {}", printable(a.as_bytes())));
    line("type", format!("{}{whose}", info.partition_type.word()))?;
    line("quota", exactly(info.quota))?;
    let (used, part) = (exactly(info.used), percent(info.fullness()));
    let keys = counted(info.keys, "key");
    line("used", format!("{used}, {part}, by {keys}"))?;
    line("free", exactly(info.free()))?;
    let (here, most) = (exactly(info.used_here), exactly(info.high_water));
    let keys = counted(info.keys_here, "key");
    line("this node", format!("{here} by {keys}, at most {most}"))?;
    const SINCE: &str = "since the server was started";
    let (writes, keys) = (counted(info.refused, "write"), counted(info.evicted, "key"));
    line("refused", format!("{writes} for want of room {SINCE}"))?;
    line("evicted", format!("{keys} to make room {SINCE}"))?;
    let prefixes = info.prefixes.iter().map(|p| printable(p) + "*");
    let prefixes: Vec<_> = prefixes.collect();
    match prefixes.is_empty() {
        true => line("keys", "those whose writes name it".to_owned())?,
        false => line("keys", prefixes.join(" "))?,
    }
    line("onfull", info.on_full.word().to_owned())?;
    line(
        "onconflict",
        or(info.on_conflict.as_ref().map(strategy), "reject"),
    )?;
    let versions = |n| format!("{} of each key", counted(n, "version"));
    let versions = info.history.map(versions);
    line("history", or(versions, SETTING))?;
    line(
        "maxage",
        or(info.max_age.map(|t| format!("{t:?}")), SETTING),
    )?;
    line("maxvalue", or(info.max_value.map(exactly), SETTING))?;
    if info.partition_type != PartitionType::Temporary {
        let ttl = info.key_ttl.map(|t| format!("keys expire after {t:?}"));
        line("ttl", or(ttl, "keys expire where their writes say so"))?;
    }
    line(
        "expires",
        or(info.expires_in.map(|t| format!("in {t:?}")), "never"),
    )?;
    line(
        "defined",
        format!("{}  ({})", info.version, show.time(info.version)),
    )?;
    match info.audit {
        None => line("audit", "none yet".to_owned()),
        Some(audit) => line("audit", audited(show, &audit)),
    }
}

fn audited(show: Show, audit: &PartitionAudit) -> String {
    let (bytes, keys) = (exactly(audit.bytes), counted(audit.keys, "key"));
    match audit.ended {
        _ if audit.running => format!("goes on; {bytes} and {keys} counted so far"),
        None => "none yet".to_owned(),
        Some(ended) => {
            let time = show.time(Version(unix_millis(ended).saturating_mul(1000)));
            let found = match audit.drift {
                0 => "as it was known".to_owned(),
                drift => format!(
                    "{} bytes too {} were known, which has been set right",
                    drift.unsigned_abs(),
                    if drift > 0 { "many" } else { "few" }
                ),
            };
            format!("{bytes} by {keys}, {found}  ({time})")
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The view that refreshes
// ---------------------------------------------------------------------------------------------

/// How many columns there are where nobody says.
const WIDTH: usize = 80;

/// What was there at the last look.
struct Before {
    at: Instant,
    used: HashMap<Vec<u8>, u64>,
}

/// A partition, and how many bytes a second it has grown by since the last look; `None` at the first.
type Seen = (PartitionInfo, Option<f64>);

async fn top(
    client: &Client,
    show: Show,
    interval: Duration,
    once: bool,
    agent: Option<&str>,
) -> Result<(), Failure> {
    let screen = (!once && !show.json && io::stdout().is_terminal()).then(Screen::open);
    let screen = screen.transpose()?;
    let mut before: Option<Before> = None;
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    loop {
        let look = async { tokio::try_join!(client.pool(), client.partitions(agent)) };
        let (pool, all) = tokio::select! {
            seen = look => seen?,
            _ = &mut stop => return Ok(()),
        };
        let now = Instant::now();
        let used = all.iter().map(|p| (p.name.clone(), p.used)).collect();
        let seen = sorted(all, before.as_ref(), now);
        before = Some(Before { at: now, used });
        if show.json {
            let partitions = seen.iter().map(|(info, rate)| {
                let mut fields = object(show, info);
                fields.insert("bytes_per_second".to_owned(), json!(rate));
                Value::Object(fields)
            });
            let partitions = partitions.collect();
            let pool = Value::Object(pool_object(&pool));
            show.object(fields([("pool", pool), ("partitions", partitions)]))?;
        } else if let Some(screen) = &screen {
            let (width, height) = extent();
            screen.paint(&frame(&pool_line(&pool), &rows(&seen), width, height))?;
        } else {
            let mut out = io::stdout().lock();
            for line in frame(&pool_line(&pool), &rows(&seen), extent().0, None) {
                writeln!(out, "{line}")?;
            }
            if !once {
                writeln!(out)?;
            }
            out.flush()?;
        }
        if once {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = &mut stop => return Ok(()),
        }
    }
}

/// Columns of the terminal, and its lines if it is one.
fn extent() -> (usize, Option<usize>) {
    let given = std::env::var("COLUMNS").ok();
    let given = given
        .and_then(|n| n.parse::<usize>().ok())
        .filter(|n| *n > 0);
    match terminal_size() {
        Some((Width(width), Height(height))) => (usize::from(width), Some(usize::from(height))),
        None => (given.unwrap_or(WIDTH), None),
    }
}

/// The fullest first.
fn sorted(all: Vec<PartitionInfo>, before: Option<&Before>, now: Instant) -> Vec<Seen> {
    let rate = |info: &PartitionInfo| {
        let before = before?;
        let used = before.used.get(&info.name)?;
        let passed = now.duration_since(before.at).as_secs_f64();
        (passed > 0.0).then(|| (info.used as f64 - *used as f64) / passed)
    };
    let mut seen: Vec<_> = all.into_iter().map(|p| (rate(&p), p)).collect();
    seen.sort_by(|(_, a), (_, b)| {
        let fuller = b.fullness().total_cmp(&a.fullness());
        fuller.then_with(|| a.name.cmp(&b.name))
    });
    seen.into_iter().map(|(rate, p)| (p, rate)).collect()
}

/// What is shown of a partition: its name, which part of it is full, and the text of the columns.
struct Row {
    name: String,
    fullness: f64,
    cells: [String; 7],
}

fn rows(seen: &[Seen]) -> Vec<Row> {
    let row = |(info, rate): &Seen| Row {
        name: printable(&info.name),
        fullness: info.fullness(),
        cells: [
            size(info.used),
            size(info.quota),
            percent(info.fullness()),
            info.keys.to_string(),
            rate.map_or_else(|| "-".to_owned(), change),
            info.refused.to_string(),
            info.evicted.to_string(),
        ],
    };
    seen.iter().map(row).collect()
}

/// The columns after name and bar.
const COLUMNS: [&str; 7] = [
    "used", "quota", "full", "keys", "change", "refused", "evicted",
];
/// Those that are left out where there is no room, first to last: the keys, the evictions …
const SPARED: [usize; 5] = [3, 6, 5, 4, 1];
/// What name and bar have at least, and the bar at most.
const NAME: usize = 12;
const BAR: (usize, usize) = (8, 30);

/// The lines of one look, none wider than the terminal, no more of them than it has.
fn frame(pool: &str, rows: &[Row], width: usize, height: Option<usize>) -> Vec<String> {
    let longest = rows.iter().map(|row| row.name.chars().count());
    let longest = longest.max().unwrap_or(0).max("name".len());
    let wide = |n: usize| {
        let cells = rows.iter().map(|row| row.cells[n].len());
        cells.max().unwrap_or(0).max(COLUMNS[n].len())
    };
    let mut kept: Vec<usize> = (0..COLUMNS.len()).collect();
    let mut spared = SPARED.iter();
    let (name, bar) = loop {
        let taken: usize = kept.iter().map(|n| 2 + wide(*n)).sum();
        let left = width.saturating_sub(taken + 2);
        if left >= NAME.min(longest) + BAR.0 {
            // The names first: a short bar says as much as a long one.
            let name = longest.min(left - BAR.0);
            break (name, (left - name).min(BAR.1));
        }
        match spared.next() {
            Some(column) => kept.retain(|n| n != column),
            None => break (longest.min(left), 0),
        }
    };
    let line = |text: &str, full: &str, cells: &dyn Fn(usize) -> String| {
        let mut line = format!("{:<name$}  {full:<bar$}", cut(text, name));
        for n in &kept {
            let width = wide(*n);
            line += &format!("  {:>width$}", cells(*n));
        }
        let line: String = line.chars().take(width).collect();
        line.trim_end().to_owned()
    };
    let mut lines = vec![pool.chars().take(width).collect(), String::new()];
    lines.push(line("name", "", &|n| COLUMNS[n].to_owned()));
    let room = height.map_or(usize::MAX, |height| height.saturating_sub(lines.len()));
    let room = match rows.len() <= room {
        true => room,
        // The last line says how many there are besides.
        false => room.saturating_sub(1),
    };
    for row in rows.iter().take(room) {
        let full = gauge(row.fullness, bar);
        lines.push(line(&row.name, &full, &|n| row.cells[n].clone()));
    }
    if rows.len() > room {
        lines.push(format!("and {} more", rows.len() - room));
    }
    lines
}

fn gauge(fullness: f64, width: usize) -> String {
    let full = (fullness.clamp(0.0, 1.0) * width as f64).floor() as usize;
    "#".repeat(full) + &".".repeat(width.saturating_sub(full))
}

fn change(rate: f64) -> String {
    let sign = match rate {
        rate if rate >= 0.5 => "+",
        rate if rate <= -0.5 => "-",
        _ => "",
    };
    format!("{sign}{}/s", size(rate.abs().round() as u64))
}

/// The end of a name that is too long: names begin alike.
fn cut(name: &str, width: usize) -> String {
    let count = name.chars().count();
    match count <= width || width == 0 {
        true => name.chars().take(width).collect(),
        false => std::iter::once('…')
            .chain(name.chars().skip(count + 1 - width))
            .collect(),
    }
}

/// The other screen of the terminal, given back whatever happens.
struct Screen;

impl Screen {
    fn open() -> io::Result<Screen> {
        let mut out = io::stdout().lock();
        let screen = Screen;
        out.write_all(b"\x1b[?1049h\x1b[?25l")?;
        out.flush()?;
        Ok(screen)
    }

    fn paint(&self, lines: &[String]) -> io::Result<()> {
        // No line end after the last one: the terminal would scroll.
        let text = format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"));
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If that fails, nobody looks.
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, fullness: f64) -> Row {
        let cells = ["1.0mb", "10.0mb", "10%", "12", "+1.0kb/s", "0", "7"];
        Row {
            name: name.to_owned(),
            fullness,
            cells: cells.map(str::to_owned),
        }
    }

    #[test]
    fn a_look_fits_the_terminal_whatever_its_width() {
        let rows = [row("partition:a-team-with-a-long-name", 0.1), row("p", 2.0)];
        for width in 0..200 {
            let lines = frame("pool  of some size", &rows, width, None);
            assert_eq!(lines.len(), 5);
            let wide = |line: &String| line.chars().count();
            let most = lines.iter().map(wide).max();
            assert!(most <= Some(width), "{width}: {lines:#?}");
        }
        let wide = frame("pool", &rows, 200, None);
        assert!(wide[3].starts_with("partition:a-team-with-a-long-name  ###......"));
        assert!(wide[4].starts_with("p                                  ########"));
        let usual = frame("pool", &rows, 80, None);
        assert!(usual[3].starts_with("…th-a-long-name  ........  "));
        assert!(usual[3].ends_with("+1.0kb/s        0        7"));
        let narrow = frame("pool", &rows, 40, None);
        assert_eq!(narrow[2], "name                          used  full");
    }

    #[test]
    fn a_look_has_no_more_lines_than_the_terminal() {
        let rows: Vec<_> = (0..50).map(|n| row(&n.to_string(), 0.5)).collect();
        let lines = frame("pool", &rows, 80, Some(10));
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[9], "and 44 more");
        let all = frame("pool", &rows[..7], 80, Some(10));
        assert!(all.len() == 10 && all[9].starts_with('6'), "{all:#?}");
    }

    #[test]
    fn sizes_and_parts_are_short_and_not_too_good() {
        for (bytes, text) in [
            (0, "0b"),
            (1023, "1023b"),
            (1024, "1.0kb"),
            (10 << 20, "10.0mb"),
            ((1 << 20) - 1, "1.0mb"),
            (1 << 30, "1.0gb"),
            (u64::MAX, "16384.0pb"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (part, text) in [
            (0.0, "0%"),
            (0.000_1, "1%"),
            (0.999_9, "99%"),
            (1.0, "100%"),
            (1.256, "126%"),
        ] {
            assert_eq!(percent(part), text);
        }
        assert_eq!(change(-2048.0), "-2.0kb/s");
        assert_eq!(change(0.2), "0b/s");
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable("ü".as_bytes()), "ü");
        assert_eq!(cut("partition:worker-7", 8), "…orker-7");
        assert_eq!(cut("short", 8), "short");
    }
}
