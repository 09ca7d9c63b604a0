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
use crate::edge::vault::Vault;
use crate::edge::{backup, failpoint, offload, restoring};

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
    let vault = backup::vault()?;
    call.check_may(&[b"BGSAVE"])?;
    match request {
        BackupRequest::Create(create) => call.reply(&BegunReply(backup::create(&create)?)),
        BackupRequest::Restore(restore) => call.reply(&BegunReply(restoring::begin(&restore)?)),
        BackupRequest::Status(id) => call.reply(&status(&vault, id)?),
        BackupRequest::List => return offload::run(call, move || Ok(BackupsReply(vault.list()))),
        BackupRequest::Verify(id) => {
            // Whoever looks at one without a key is not about to take it for good.
            let chain = Chain::open(&vault, id, backup::keys()?, true)?;
            return offload::run(call, move || {
                let verified = chain.verify();
                verified.map_err(|why| Refusal::new(Code::BadBackup, why))
            });
        }
        BackupRequest::Cancel(id) => {
            if !backup::cancel(id) && !restoring::cancel(id) {
                return Err(no_job(id));
            }
            call.reply_int(1);
        }
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

fn no_job(id: BackupId) -> Refusal {
    let text = format!("no backup or restore {id} is running");
    Refusal::new(Code::NotFound, text)
}

fn no_backup(id: BackupId) -> Refusal {
    let text = format!("there is no backup {id} in maos.backup-dir; MAOS.BACKUP LIST shows all");
    Refusal::new(Code::NotFound, text)
}

/// How a job stands; of one that is not remembered what its file says.
fn status(vault: &Vault, id: BackupId) -> Result<StatusReply<'static>, Refusal> {
    if let Some(status) = backup::status(id).or_else(|| restoring::status(id)) {
        return Ok(status);
    }
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
    })
}
