//! The server's functions, found by name when the module is loaded. Which of them a server offers
//! is the only thing that is ever asked about it; its version number is not.

pub use redis_module::raw;

/// The server's function of this name: one of those without which the module does not load. A debug
/// build asks again whether it is there.
macro_rules! api {
    ($name:ident) => {{
        // Does not compile for a function that is not in the list.
        let () = $crate::edge::api::needed::$name;
        match $crate::edge::api::api_if!($name) {
            Some(function) => function,
            None if cfg!(debug_assertions) => $crate::edge::api::missing(stringify!($name)),
            #[allow(unused_unsafe)]
            // SAFETY: it stands in the list, which was checked at load.
            None => unsafe { std::hint::unreachable_unchecked() },
        }
    }};
}

/// The server's function of this name, if it offers it.
macro_rules! api_if {
    ($name:ident) => {{
        #[allow(unused_unsafe)]
        // SAFETY: the table of functions is filled once, at load, before anything else runs.
        let function = unsafe { $crate::edge::api::raw::$name };
        function
    }};
}

pub(crate) use {api, api_if};

#[cold]
pub fn missing(name: &str) -> ! {
    panic!("the server does not offer {name}")
}

macro_rules! needed {
    ($($name:ident)*) => {
        #[allow(non_upper_case_globals)] // the server's names
        pub mod needed {
            $(pub const $name: () = ();)*
        }

        /// The functions without which the module does not load and that this server lacks.
        pub fn lacking() -> Vec<&'static str> {
            let mut missing = vec![];
            $(if api_if!($name).is_none() {
                missing.push(stringify!($name));
            })*
            missing
        }
    };
}

// All offered since Redis 7.0.
needed! {
    RedisModule_Alloc RedisModule_Realloc RedisModule_Calloc RedisModule_Free
    RedisModule_CreateCommand RedisModule_GetCommand RedisModule_SetCommandInfo
    RedisModule_IsKeysPositionRequest RedisModule_KeyAtPosWithFlags
    RedisModule_CreateDataType RedisModule_SetModuleOptions
    RedisModule_OpenKey RedisModule_CloseKey RedisModule_KeyType
    RedisModule_ModuleTypeGetType RedisModule_ModuleTypeGetValue RedisModule_ModuleTypeSetValue
    RedisModule_GetExpire RedisModule_SetExpire RedisModule_SetAbsExpire RedisModule_GetAbsExpire
    RedisModule_DeleteKey RedisModule_BlockClientOnKeys RedisModule_UnblockClient
    RedisModule_GetBlockedClientPrivateData RedisModule_SetDisconnectCallback
    RedisModule_GetKeyNameFromOptCtx RedisModule_GetDbIdFromOptCtx
    RedisModule_SignalModifiedKey RedisModule_Replicate RedisModule_ReplicateVerbatim
    RedisModule_StringPtrLen RedisModule_CreateString RedisModule_FreeString
    RedisModule_GetClientId RedisModule_GetClientUserNameById RedisModule_Call
    RedisModule_GetCurrentUserName RedisModule_GetContextFlags RedisModule_AvoidReplicaTraffic
    RedisModule_ReplyWithError RedisModule_ReplyWithNull RedisModule_ReplyWithLongLong
    RedisModule_ReplyWithStringBuffer RedisModule_ReplyWithArray RedisModule_ReplyWithMap
    RedisModule_LoadStringBuffer RedisModule_SaveStringBuffer RedisModule_EmitAOF
    RedisModule_LogIOError RedisModule_Log
    RedisModule_DigestAddStringBuffer RedisModule_DigestAddLongLong RedisModule_DigestEndSequence
    RedisModule_DefragAlloc RedisModule_RegisterInfoFunc RedisModule_InfoAddSection
    RedisModule_InfoAddFieldULongLong RedisModule_InfoAddFieldLongLong RedisModule_InfoAddFieldCString
    RedisModule_GetServerInfo RedisModule_FreeServerInfo RedisModule_ServerInfoGetFieldC
    RedisModule_ServerInfoGetFieldUnsigned RedisModule_SubscribeToServerEvent
    RedisModule_GetKeyNameFromIO RedisModule_GetDbIdFromIO RedisModule_GetSelectedDb
    RedisModule_FreeCallReply RedisModule_CallReplyType RedisModule_CallReplyStringPtr RedisModule_CallReplyArrayElement
    RedisModule_CallReplyLength RedisModule_BlockClient RedisModule_GetBlockedClientHandle
    RedisModule_GetDetachedThreadSafeContext
    RedisModule_RegisterClusterMessageReceiver RedisModule_SendClusterMessage
    RedisModule_SubscribeToKeyspaceEvents RedisModule_NotifyKeyspaceEvent
    RedisModule_CreateSubcommand RedisModule_GetModuleUserFromUserName RedisModule_FreeModuleUser
    RedisModule_ACLCheckKeyPermissions RedisModule_GetToKeyNameFromOptCtx RedisModule_GetToDbIdFromOptCtx
    RedisModule_CreateDict RedisModule_FreeDict RedisModule_DictSetC RedisModule_DictDelC RedisModule_DictSize
    RedisModule_DictIteratorStartC RedisModule_DictNextC RedisModule_DictIteratorStop
    RedisModule_RegisterBoolConfig RedisModule_RegisterNumericConfig RedisModule_LoadConfigs
    RedisModule_CreateTimer RedisModule_Scan RedisModule_ScanCursorCreate
    RedisModule_ScanCursorRestart RedisModule_SelectDb RedisModule_ScanCursorDestroy RedisModule_DbSize
    RedisModule_RegisterCommandFilter RedisModule_UnregisterCommandFilter
    RedisModule_CommandFilterArgsCount RedisModule_CommandFilterArgGet
    RedisModule_ACLCheckCommandPermissions RedisModule_RegisterStringConfig RedisModule_GetMyClusterID RedisModule_AbortBlock RedisModule_GetKeyNameFromModuleKey RedisModule_ValueLength RedisModule_GetUsedMemoryRatio
}
