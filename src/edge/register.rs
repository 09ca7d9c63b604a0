//! The command table, told to the server: flags, arity, key specs, documentation, ACL categories.

use std::ffi::{c_int, CString};
use std::ptr;

use maos_core::wire::spec::{Access, Arg, ArgKind, CommandSpec, Keys};

use super::api::{api, api_if, raw};
use super::log;
use crate::commands::{Handler, HANDLERS};

/// Registers every command.
///
/// # Errors
/// What the server refused.
pub fn register(ctx: *mut raw::RedisModuleCtx) -> Result<(), String> {
    let own_category = add_category(ctx);
    let mut containers = vec![];
    for (spec, handler) in HANDLERS.iter().copied().flatten() {
        if let (command, Some(_)) = spec.names() {
            if !containers.contains(&command) {
                containers.push(command);
                container(ctx, command)?;
            }
        }
        one(ctx, spec, *handler, own_category)?;
    }
    Ok(())
}

/// Our own ACL category @maos, where the server lets a module have one.
fn add_category(ctx: *mut raw::RedisModuleCtx) -> bool {
    let Some(add) = api_if!(RedisModule_AddACLCategory) else {
        log::notice("this server has no ACL categories for modules (@maos): allow commands by name, like +maos.get");
        return false;
    };
    // SAFETY: in OnLoad, with its context.
    unsafe { add(ctx, c"maos".as_ptr()) == raw::REDISMODULE_OK as c_int }
}

/// A command that has subcommands, and does nothing by itself.
fn container(ctx: *mut raw::RedisModuleCtx, name: &str) -> Result<(), String> {
    let name_ = text(name);
    // SAFETY: in OnLoad with its context; the server copies the strings.
    let done = unsafe {
        let create = api!(RedisModule_CreateCommand);
        create(ctx, name_.as_ptr(), None, c"".as_ptr(), 0, 0, 0)
    };
    match done == raw::REDISMODULE_OK as c_int {
        true => Ok(()),
        false => Err(format!("{name}: the server did not take its name")),
    }
}

fn one(
    ctx: *mut raw::RedisModuleCtx,
    spec: &CommandSpec,
    handler: Handler,
    own_category: bool,
) -> Result<(), String> {
    let refused = |what: &str| format!("{}: the server did not take its {what}", spec.name);
    let (command, own) = spec.names();
    let name = text(own.unwrap_or(command));
    let full_name = text(&spec.full_name());
    let offset = usize::from(own.is_some());
    let asked = matches!(spec.keys, Keys::Counted { .. });
    let flags = text(&format!(
        "{}{}",
        spec.flags,
        if asked { " getkeys-api" } else { "" }
    ));
    let (first, last, step) = match spec.keys {
        Keys::None => (0, 0, 0),
        Keys::One(_) => (1 + offset, 1 + offset, 1),
        Keys::Counted { step, .. } => (2, 2, step),
        Keys::Pairs(from, _) => (from, 0, 2),
    };
    let last = match spec.keys {
        Keys::Pairs(..) => -1,
        _ => last as c_int,
    };
    // SAFETY: in OnLoad with its context; the server copies the strings.
    let command = unsafe {
        let (run, name, flags) = (Some(handler), name.as_ptr(), flags.as_ptr());
        let (first, step) = (first as c_int, step as c_int);
        let done = match own {
            None => api!(RedisModule_CreateCommand)(ctx, name, run, flags, first, last, step),
            Some(_) => {
                let parent = api!(RedisModule_GetCommand)(ctx, text(command).as_ptr());
                let create = api!(RedisModule_CreateSubcommand);
                create(parent, name, run, flags, first, last, step)
            }
        };
        if done != raw::REDISMODULE_OK as c_int {
            return Err(refused("name"));
        }
        api!(RedisModule_GetCommand)(ctx, full_name.as_ptr())
    };
    if command.is_null() || !describe(command, spec) {
        return Err(refused("description"));
    }
    if let Some(categorise) = api_if!(RedisModule_SetCommandACLCategories) {
        let own = if own_category { " maos" } else { "" };
        let categories = text(&format!("{}{own}", spec.acl));
        // SAFETY: in OnLoad; the command was just made.
        if unsafe { categorise(command, categories.as_ptr()) } != raw::REDISMODULE_OK as c_int {
            return Err(refused("ACL categories"));
        }
    }
    Ok(())
}

fn text(s: &str) -> CString {
    CString::new(s).unwrap_or_default()
}

/// Keeps what the server's structures point to for as long as the call takes.
#[derive(Default)]
struct Arena {
    texts: Vec<CString>,
    args: Vec<Box<[raw::RedisModuleCommandArg]>>,
}

impl Arena {
    fn text(&mut self, s: &str) -> *const std::ffi::c_char {
        if s.is_empty() {
            return ptr::null();
        }
        let made = text(s);
        // The bytes do not move when the CString does.
        let start = made.as_ptr();
        self.texts.push(made);
        start
    }

    /// The arguments in the server's form, ended by an empty one.
    fn args<'s>(&mut self, args: impl Iterator<Item = &'s Arg>) -> *mut raw::RedisModuleCommandArg {
        let mut list: Vec<_> = args.filter(|a| !a.reserved).map(|a| self.arg(a)).collect();
        if list.is_empty() {
            return ptr::null_mut();
        }
        // SAFETY: all zero is what ends the list, and is valid for its pointers and integers.
        list.push(unsafe { std::mem::zeroed() });
        let mut list = list.into_boxed_slice();
        let start = list.as_mut_ptr();
        self.args.push(list);
        start
    }

    fn arg(&mut self, arg: &Arg) -> raw::RedisModuleCommandArg {
        use ArgKind::*;
        let (kind, subargs) = match arg.kind {
            Key => (
                raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_KEY,
                ptr::null_mut(),
            ),
            Pattern => (
                raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PATTERN,
                ptr::null_mut(),
            ),
            Beginning | KeyLike | Cursor | Backup | Events | KeyAgain | Value | Name(_) | Owner
            | Partition | Json | Patch | Number | Pointer => (
                raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_STRING,
                ptr::null_mut(),
            ),
            NumKeys | Integer(..) | Lease | Version | VersionRef | Token => (
                raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_INTEGER,
                ptr::null_mut(),
            ),
            UnixMillis | UnixSeconds => (
                raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_UNIX_TIME,
                ptr::null_mut(),
            ),
            Word => (
                raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PURE_TOKEN,
                ptr::null_mut(),
            ),
            OneOf(of) => (
                raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_ONEOF,
                self.args(of.iter()),
            ),
            Block(of) => (
                raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_BLOCK,
                self.args(of.iter()),
            ),
        };
        let mut flags = raw::REDISMODULE_CMD_ARG_NONE;
        if arg.optional {
            flags |= raw::REDISMODULE_CMD_ARG_OPTIONAL;
        }
        if arg.multiple {
            flags |= raw::REDISMODULE_CMD_ARG_MULTIPLE;
            if arg.token.is_some() {
                flags |= raw::REDISMODULE_CMD_ARG_MULTIPLE_TOKEN;
            }
        }
        raw::RedisModuleCommandArg {
            name: self.text(arg.name),
            type_: kind,
            key_spec_index: if matches!(arg.kind, Key) { 0 } else { -1 },
            token: self.text(arg.token.map_or("", |t| t.word())),
            summary: self.text(arg.meaning),
            since: ptr::null(),
            flags: flags as c_int,
            deprecated_since: ptr::null(),
            subargs,
            display_text: ptr::null(),
        }
    }
}

/// The flags of a key: what the ACL goes by.
pub fn key_flags(access: Access) -> u32 {
    match access {
        Access::Read => raw::REDISMODULE_CMD_KEY_RO | raw::REDISMODULE_CMD_KEY_ACCESS,
        Access::ReadWrite => {
            raw::REDISMODULE_CMD_KEY_RW
                | raw::REDISMODULE_CMD_KEY_ACCESS
                | raw::REDISMODULE_CMD_KEY_UPDATE
        }
        Access::Write => raw::REDISMODULE_CMD_KEY_OW | raw::REDISMODULE_CMD_KEY_UPDATE,
        Access::Delete => {
            raw::REDISMODULE_CMD_KEY_RW
                | raw::REDISMODULE_CMD_KEY_ACCESS
                | raw::REDISMODULE_CMD_KEY_DELETE
        }
    }
}

/// What the ACL and the cluster go by.
fn key_spec(keys: Keys, offset: usize) -> raw::RedisModuleCommandKeySpec {
    // SAFETY: all zero is valid for its pointers and integers.
    let mut spec: raw::RedisModuleCommandKeySpec = unsafe { std::mem::zeroed() };
    spec.flags = key_flags(keys.access()).into();
    spec.begin_search_type = raw::RedisModuleKeySpecBeginSearchType_REDISMODULE_KSPEC_BS_INDEX;
    spec.find_keys_type = raw::RedisModuleKeySpecFindKeysType_REDISMODULE_KSPEC_FK_RANGE;
    spec.bs.index.pos = (1 + offset) as c_int;
    match keys {
        Keys::None => {}
        Keys::One(_) => spec.fk.range.keystep = 1,
        Keys::Counted { step, .. } => {
            if step > 1 {
                // Redis 7.0 forgets to multiply by the step and would miss keys, for the ACL too.
                // With this flag every server asks us instead (`Call::tell_keys`).
                spec.flags |= u64::from(raw::REDISMODULE_CMD_KEY_VARIABLE_FLAGS);
            }
            spec.find_keys_type = raw::RedisModuleKeySpecFindKeysType_REDISMODULE_KSPEC_FK_KEYNUM;
            spec.fk.keynum = raw::RedisModuleCommandKeySpec__bindgen_ty_2__bindgen_ty_2 {
                keynumidx: 0,
                firstkey: 1,
                keystep: step as c_int,
            };
        }
        Keys::Pairs(from, _) => {
            spec.bs.index.pos = from as c_int;
            spec.fk.range = raw::RedisModuleCommandKeySpec__bindgen_ty_2__bindgen_ty_1 {
                lastkey: -1,
                keystep: 2,
                limit: 0,
            };
        }
    }
    spec
}

fn describe(command: *mut raw::RedisModuleCommand, spec: &CommandSpec) -> bool {
    let mut arena = Arena::default();
    let version = raw::RedisModuleCommandInfoVersion {
        version: 1,
        sizeof_historyentry: size_of::<raw::RedisModuleCommandHistoryEntry>(),
        sizeof_keyspec: size_of::<raw::RedisModuleCommandKeySpec>(),
        sizeof_arg: size_of::<raw::RedisModuleCommandArg>(),
    };
    // SAFETY: all zero is valid for its pointers and integers, and ends the list.
    let end = || unsafe { std::mem::zeroed() };
    let offset = usize::from(spec.names().1.is_some());
    let mut specs = match spec.keys {
        Keys::None => [end(), end()],
        keys => [key_spec(keys, offset), end()],
    };
    let info = raw::RedisModuleCommandInfo {
        version: &raw const version,
        summary: arena.text(spec.summary),
        complexity: arena.text(spec.complexity),
        since: arena.text(spec.since),
        history: ptr::null_mut(),
        tips: ptr::null(),
        arity: spec.arity,
        key_specs: specs.as_mut_ptr(),
        args: arena.args(spec.all_args()),
    };
    // SAFETY: the command was just made; the server copies all that `info` points to, which lives
    // in `arena`, `version` and `specs` until the end of this function.
    unsafe {
        api!(RedisModule_SetCommandInfo)(command, &raw const info) == raw::REDISMODULE_OK as c_int
    }
}
