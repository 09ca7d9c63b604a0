//! Backups: made, listed, looked at, brought back.

use maos_core::codec::backup as format;
use maos_core::wire::backup::{
    BackupFileReply, BackupId, BackupRequest, BackupsReply, BegunReply, JobKind, JobState,
    StatusReply,
};
use maos_core::wire::{Request, Value};
use maos_core::{Code, Refusal};

use crate::edge::call::Call;
use crate::edge::chain::Chain;
use crate::edge::node::node;
use crate::edge::vault::Vault;
use crate::edge::{backup, failpoint, offload, restoring, rolling};

/// MAOS.BACKUP
pub fn backup<'a, C: Request<'a> + Into<BackupRequest<'a>>>(
    call: &Call<'a>,
) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request: BackupRequest<'_> = C::parse(call.args)?.into();
    failpoint::hit("backup");
    if let BackupRequest::Help(help) = request {
        call.reply(&help);
        return Ok(());
    }
    // A job that is remembered needs no directory.
    if let BackupRequest::Status(id) | BackupRequest::Cancel(id) = request {
        if let Some(status) = remembered(call, id) {
            check_may_ask(call, id)?;
            match request {
                BackupRequest::Cancel(_) => cancel(call, id)?,
                _ => call.reply(&status),
            }
            return Ok(());
        }
    }
    let vault = backup::vault()?;
    call.check_may(&[b"BGSAVE"])?;
    match request {
        BackupRequest::Create(create) => call.reply(&BegunReply(backup::create(&create)?)),
        BackupRequest::Restore(restore) => call.reply(&BegunReply(restoring::begin(&restore)?)),
        BackupRequest::Status(id) => return offload::run(call, move || on_disk(&vault, id)),
        BackupRequest::List => return offload::run(call, move || Ok(BackupsReply(vault.list()))),
        BackupRequest::Verify(id) => {
            // Whoever looks at one without a key is not about to take it for good.
            let chain = Chain::open(&vault, id, backup::keys()?, true)?;
            return offload::run(call, move || {
                let verified = chain.verify();
                verified.map_err(|why| Refusal::new(Code::BadBackup, why))
            });
        }
        BackupRequest::Cancel(id) => return Err(no_job(id)),
        BackupRequest::Delete(id) => {
            if backup::is_making(id) {
                return Err(Refusal::fixed(
                    Code::Busy,
                    "this backup is being made: MAOS.BACKUP CANCEL ends that",
                ));
            }
            return offload::run(call, move || delete(&vault, id));
        }
        BackupRequest::Help(_) => {}
    }
    Ok(())
}

/// Removes the file of a backup that no other one needs.
fn delete(vault: &Vault, id: BackupId) -> Result<Value, Refusal> {
    let path = vault.find(id).ok_or_else(|| no_backup(id))?;
    let is_needed = |b: &&BackupFileReply<'_>| b.backup.parent == Some(id);
    let needed = vault.list().iter().filter(is_needed).count();
    if needed > 0 {
        let text = format!("{needed} other backups go on from this one, and could not be restored without it: delete them first");
        return Err(Refusal::new(Code::Err, text));
    }
    let removed = vault.remove(&path);
    removed.map_err(|why| Refusal::new(Code::Err, why))?;
    Ok(Value::Int(1))
}

/// How a job stands that is remembered, as the user of the call may see it.
fn remembered(call: &Call<'_>, id: BackupId) -> Option<StatusReply<'static>> {
    backup::status(id)
        .or_else(|| restoring::status(id))
        .or_else(|| rolling::status(id, &|key| call.may_read(key)))
}

/// Whether the user may ask about a job, or end it: it is an administrator, or rolls back itself.
fn check_may_ask(call: &Call<'_>, id: BackupId) -> Result<(), Refusal> {
    let is_own = call.with_user(&mut node().users, |user| rolling::is_of(id, user));
    match is_own {
        true => Ok(()),
        false => call.check_may(&[b"BGSAVE"]),
    }
}

fn cancel(call: &Call<'_>, id: BackupId) -> Result<(), Refusal> {
    if !backup::cancel(id) && !restoring::cancel(id) && !rolling::cancel(id) {
        return Err(no_job(id));
    }
    call.reply_int(1);
    Ok(())
}

fn no_job(id: BackupId) -> Refusal {
    let text = format!("no backup, restore or roll-back {id} is running");
    Refusal::new(Code::NotFound, text)
}

fn no_backup(id: BackupId) -> Refusal {
    let text = format!("there is no backup {id} in maos.backup-dir; MAOS.BACKUP LIST shows all");
    Refusal::new(Code::NotFound, text)
}

/// How a backup stands that is not remembered: what its file says.
fn on_disk(vault: &Vault, id: BackupId) -> Result<StatusReply<'static>, Refusal> {
    let path = vault.find(id).ok_or_else(|| no_backup(id))?;
    let bad = |why: String| Refusal::new(Code::BadBackup, why);
    let file = vault.open(&path).map_err(bad)?;
    let size = file.metadata().map_or(0, |found| found.len());
    let (head, _) = format::peek(&file).map_err(|e| bad(e.to_string()))?;
    Ok(StatusReply {
        id,
        name: head.name.as_bytes().to_vec().into(),
        kind: JobKind::Create,
        state: JobState::Done,
        keys: 0,
        bytes: size,
        instant: head.instant,
        millis: 0,
        error: None,
        left_out: 0,
        restore: None,
        rollback: None,
    })
}
