//! The form of a table entry.

use crate::Code;

macro_rules! toks {
    ($($name:ident $word:literal)*) => {
        /// A word that introduces an option. Only words that stand in a command's table are taken.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs)] // each is its word
        pub enum Tok { $($name),* }

        impl Tok {
            /// Every token.
            pub const ALL: &'static [Tok] = &[$(Tok::$name),*];

            /// The word on the wire; taken in any case.
            pub const fn word(self) -> &'static str {
                match self { $(Tok::$name => $word),* }
            }
        }
    };
}

toks! {
    By "BY" Meta "META" ReqId "REQID" Token "TOKEN" Fence "FENCE" IfVersion "IFVERSION"
    Ex "EX" Px "PX" ExAt "EXAT" PxAt "PXAT" KeepTtl "KEEPTTL" Partition "PARTITION"
    Version "VERSION" At "AT" WithVersion "WITHVERSION" Full "FULL"
    From "FROM" To "TO" Count "COUNT" Desc "DESC" After "AFTER" Values "VALUES"
    JsonPatch "JSONPATCH" Path "PATH" Min "MIN" Max "MAX"
    Strategy "STRATEGY" Reject "REJECT" Lww "LWW" Fww "FWW" Merge "MERGE" Function "FUNCTION" Ts "TS"
    If "IF" Then "THEN" Else "ELSE" Absent "ABSENT" Exists "EXISTS" Value "VALUE"
    Set "SET" Del "DEL" Patch "PATCH" IncrBy "INCRBY" Get "GET"
    Shared "SHARED" Wait "WAIT" Note "NOTE" Advisory "ADVISORY"
    Bytes "BYTES" Type "TYPE" Agent "AGENT" Prefix "PREFIX" NoPrefix "NOPREFIX" Ttl "TTL" OnFull "ONFULL"
    OnConflict "ONCONFLICT" History "HISTORY" MaxAge "MAXAGE" MaxValue "MAXVALUE" Force "FORCE" Audit "AUDIT"
    AgentDedicated "AGENT_DEDICATED" SharedPool "SHARED_POOL" Temporary "TEMPORARY" Persistent "PERSISTENT"
    Evict "EVICT"
    Since "SINCE" Block "BLOCK" Types "TYPES" NotBy "NOTBY"
    Into "INTO" DryRun "DRYRUN" Keep "KEEP" Replace "REPLACE" Native "NATIVE"
}

/// A set of tokens: a bit for each.
pub type Toks = u128;

/// The tokens of each shape: few share the first letter and the length.
static SHAPES: [Toks; 32 * 16] = {
    let mut shapes = [0; 32 * 16];
    let mut n = 0;
    while n < Tok::ALL.len() {
        let word = Tok::ALL[n].word().as_bytes();
        shapes[shape_of(word[0], word.len())] |= Tok::ALL[n].bit();
        n += 1;
    }
    shapes
};

/// The same in upper and lower case, and of all words that are alike.
const fn shape_of(first: u8, len: usize) -> usize {
    (first & 31) as usize * 16 + len % 16
}

impl Tok {
    /// This token as one bit of a set.
    pub const fn bit(self) -> Toks {
        1 << self as u32
    }

    /// Whether a word is this one.
    #[inline]
    pub fn is(self, word: &[u8]) -> bool {
        self.word().as_bytes().eq_ignore_ascii_case(word)
    }

    /// The token of a word, if it is one of a set.
    pub fn among(set: Toks, word: &[u8]) -> Option<Tok> {
        let shape = word.first().map(|first| shape_of(*first, word.len()));
        let mut left = shape.map_or(0, |shape| set & SHAPES[shape]);
        while left != 0 {
            let tok = Tok::ALL[left.trailing_zeros() as usize];
            if tok.is(word) {
                return Some(tok);
            }
            left &= left - 1;
        }
        None
    }
}

/// What an argument is.
#[derive(Clone, Copy, Debug)]
pub enum ArgKind {
    /// A key: any bytes.
    Key,
    /// One of the keys that were named before.
    KeyAgain,
    /// Any bytes up to the setting `maos.value-max-bytes`.
    Value,
    /// A name: 1 to this many bytes.
    Name(usize),
    /// A JSON object.
    Json,
    /// A merge patch, or a JSON patch.
    Patch,
    /// A number as JSON writes it.
    Number,
    /// A JSON pointer.
    Pointer,
    /// How many keys follow.
    NumKeys,
    /// An integer from .0 to .1.
    Integer(i64, i64),
    /// A version, not negative.
    Version,
    /// A version, or -n for the n-th before the current one.
    VersionRef,
    /// A lock token.
    Token,
    /// The name of a lock's owner, or of a lock elsewhere.
    Owner,
    /// The name of a partition.
    Partition,
    /// A pattern over keys.
    Pattern,
    /// What keys begin with: any bytes, or none.
    Beginning,
    /// A key that need not be one, and is not looked at.
    KeyLike,
    /// The cursor of a watch.
    Cursor,
    /// The name of a backup, or its id.
    Backup,
    /// Types of events, separated by commas.
    Events,
    /// How long a lease lasts, in milliseconds.
    Lease,
    /// Unix time in milliseconds.
    UnixMillis,
    /// Unix time in seconds.
    UnixSeconds,
    /// The token alone.
    Word,
    /// Exactly one of these.
    OneOf(&'static [Arg]),
    /// All of these, in this order.
    Block(&'static [Arg]),
}

/// One argument of a command.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Its name in the documentation.
    pub name: &'static str,
    /// What it is.
    pub kind: ArgKind,
    /// The word before it.
    pub token: Option<Tok>,
    /// May be left out.
    pub optional: bool,
    /// May be repeated.
    pub multiple: bool,
    /// Its place is kept; it is not offered yet.
    pub reserved: bool,
    /// What it does; empty where the name says it.
    pub meaning: &'static str,
}

impl Arg {
    /// A required argument.
    pub const fn new(name: &'static str, kind: ArgKind) -> Arg {
        Arg {
            name,
            kind,
            token: None,
            optional: false,
            multiple: false,
            reserved: false,
            meaning: "",
        }
    }

    /// An option introduced by its word.
    pub const fn option(tok: Tok, name: &'static str, kind: ArgKind, meaning: &'static str) -> Arg {
        Arg {
            token: Some(tok),
            optional: true,
            meaning,
            ..Arg::new(name, kind)
        }
    }

    /// The same argument, repeatable.
    pub const fn many(self) -> Arg {
        Arg {
            multiple: true,
            ..self
        }
    }

    /// The same argument, optional.
    pub const fn maybe(self) -> Arg {
        Arg {
            optional: true,
            ..self
        }
    }

    /// The same argument, required.
    pub const fn needed(self) -> Arg {
        Arg {
            optional: false,
            ..self
        }
    }

    /// The same argument, its place kept for later.
    pub const fn later(self) -> Arg {
        Arg {
            reserved: true,
            ..self
        }
    }

    const fn own_token(&self) -> Toks {
        match self.token {
            Some(t) => t.bit(),
            None => 0,
        }
    }

    const fn tokens(&self) -> Toks {
        match self.kind {
            ArgKind::OneOf(args) | ArgKind::Block(args) => self.own_token() | tokens_of(args),
            _ => self.own_token(),
        }
    }
}

const fn tokens_of(args: &[Arg]) -> Toks {
    let mut set = 0;
    let mut i = 0;
    while i < args.len() {
        set |= args[i].tokens();
        i += 1;
    }
    set
}

/// What a command does with its keys: the flags of its key spec, which the ACL goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads the value: `%R~` suffices.
    Read,
    /// Writes, and may show the present value (a lost race does): needs `%R~` and `%W~`.
    ReadWrite,
    /// Writes and shows nothing: `%W~` suffices.
    Write,
    /// Deletes, and may show the present value: needs `%R~` and `%W~`.
    Delete,
}

/// Where the keys stand. Positions count the command's name as 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keys {
    /// There are none.
    None,
    /// One key, the first argument.
    One(Access),
    /// The first argument says how many keys follow, each with `step - 1` arguments after it.
    Counted {
        /// Arguments from one key to the next.
        step: usize,
        /// What is done with them.
        access: Access,
    },
    /// From argument .0 to the end, every second one.
    Pairs(usize, Access),
}

/// The number of keys, as the server and the parser both take it: decimal digits, nothing else.
pub fn parse_count(arg: &[u8]) -> Option<usize> {
    let digits = arg.iter().all(u8::is_ascii_digit) && arg.first() != Some(&b'0');
    let text = std::str::from_utf8(arg).ok().filter(|_| digits)?;
    text.parse().ok()
}

impl Keys {
    /// The places of the keys among the arguments after the command's name. None where the number
    /// of keys is no number; where it says too much, the places end with the arguments.
    pub fn positions(self, args: &[&[u8]]) -> impl Iterator<Item = usize> {
        let (first, step, end) = match self {
            Keys::None => (0, 1, 0),
            Keys::One(_) => (0, 1, 1),
            Keys::Counted { step, .. } => {
                let n = args.first().and_then(|n| parse_count(n)).unwrap_or(0);
                (1, step, n.saturating_mul(step).saturating_add(1))
            }
            Keys::Pairs(from, _) => (from - 1, 2, args.len()),
        };
        (first..end.min(args.len())).step_by(step)
    }

    /// What is done with the keys.
    pub fn access(self) -> Access {
        match self {
            Keys::None => Access::Read,
            Keys::One(a) | Keys::Counted { access: a, .. } | Keys::Pairs(_, a) => a,
        }
    }
}

/// How many words a command's name has: two, if it is a subcommand's.
pub const fn words(name: &str) -> usize {
    let (mut at, mut words) = (0, 1);
    while at < name.len() {
        if name.as_bytes()[at] == b' ' {
            words += 1;
        }
        at += 1;
    }
    words
}

/// A worked example: request lines and the replies they give, in the transcript's notation.
pub type Examples = &'static str;

/// One command, described once.
#[derive(Debug)]
pub struct CommandSpec {
    /// The name, in capitals.
    pub name: &'static str,
    /// One sentence without a full stop.
    pub summary: &'static str,
    /// Big O.
    pub complexity: &'static str,
    /// The version it appeared in.
    pub since: &'static str,
    /// The server's arity, the name counted; negative: at least.
    pub arity: i32,
    /// The server's command flags.
    pub flags: &'static str,
    /// The server's ACL categories, besides our own.
    pub acl: &'static str,
    /// Where the keys are.
    pub keys: Keys,
    /// The positional arguments.
    pub args: &'static [Arg],
    /// The options after them, in any order.
    pub options: &'static [&'static [Arg]],
    /// The reply, for a person.
    pub reply: &'static str,
    /// The refusals it may give, besides those of every command.
    pub refusals: &'static [Code],
    /// Runs as a transcript.
    pub examples: Examples,
    /// Sent by servers to servers only.
    pub internal: bool,
}

impl CommandSpec {
    /// All arguments, positional ones first.
    pub fn all_args(&self) -> impl Iterator<Item = &'static Arg> {
        self.args
            .iter()
            .chain(self.options.iter().copied().flatten())
    }

    /// The name, and for a subcommand its own name after that of the command it belongs to.
    pub fn names(&self) -> (&'static str, Option<&'static str>) {
        match self.name.split_once(' ') {
            Some((command, own)) => (command, Some(own)),
            None => (self.name, None),
        }
    }

    /// The name as the server has it, in `COMMAND INFO` and the ACL: in small letters, `command|subcommand`.
    pub fn full_name(&self) -> String {
        self.name.to_ascii_lowercase().replace(' ', "|")
    }

    /// True if the command may change something.
    pub fn is_write(&self) -> bool {
        self.keys.access() != Access::Read
    }

    /// The set of tokens that this command takes.
    pub const fn tokens(&self) -> Toks {
        let mut set = tokens_of(self.args);
        let mut i = 0;
        while i < self.options.len() {
            set |= tokens_of(self.options[i]);
            i += 1;
        }
        set
    }

    /// True if the token's place is kept and it is not offered yet.
    pub fn is_reserved(&self, tok: Tok) -> bool {
        self.all_args().any(|a| a.token == Some(tok) && a.reserved)
    }
}

/// What the words of a command's options may be, worked out once from its entry.
#[derive(Debug)]
pub struct Rules {
    /// The entry.
    pub spec: &'static CommandSpec,
    /// All that stand in it.
    pub(super) known: Toks,
    /// Those whose place is kept.
    pub(super) reserved: Toks,
    /// Those that may be given more than once.
    pub(super) repeatable: Toks,
    /// For each, those of which only one may be given.
    pub(super) exclusive: [Toks; Tok::ALL.len()],
}

impl Rules {
    /// Of an entry.
    pub const fn of(spec: &'static CommandSpec) -> Rules {
        let mut rules = Rules {
            spec,
            known: spec.tokens(),
            reserved: 0,
            repeatable: 0,
            exclusive: [0; Tok::ALL.len()],
        };
        rules.note(spec.args);
        let mut group = 0;
        while group < spec.options.len() {
            rules.note(spec.options[group]);
            group += 1;
        }
        rules
    }

    const fn note(&mut self, args: &[Arg]) {
        let mut i = 0;
        while i < args.len() {
            let arg = &args[i];
            if arg.reserved {
                self.reserved |= arg.own_token();
            }
            if arg.multiple {
                self.repeatable |= arg.own_token();
            }
            // What follows a word of its own is that word's.
            if let (ArgKind::OneOf(of), None) = (&arg.kind, arg.token) {
                let mut one = 0;
                while one < of.len() {
                    if of[one].multiple {
                        self.repeatable |= of[one].own_token();
                    }
                    one += 1;
                }
                let mut tok = 0;
                while tok < self.exclusive.len() {
                    if tokens_of(of) & (1 << tok) != 0 {
                        self.exclusive[tok] = tokens_of(of);
                    }
                    tok += 1;
                }
            }
            i += 1;
        }
    }
}

pub(super) const KEY: Arg = Arg::new("key", ArgKind::Key);
pub(super) const VALUE: Arg = Arg::new("value", ArgKind::Value);
pub(super) const NUMKEYS: Arg = Arg::new("numkeys", ArgKind::NumKeys);

pub(super) const EXPIRY: &[Arg] = &[
    Arg::option(
        Tok::Ex,
        "seconds",
        ArgKind::Integer(1, i64::MAX / 1000),
        "expire after this many seconds",
    )
    .needed(),
    Arg::option(
        Tok::Px,
        "milliseconds",
        ArgKind::Integer(1, i64::MAX),
        "expire after this many milliseconds",
    )
    .needed(),
    Arg::option(
        Tok::ExAt,
        "unix-time-seconds",
        ArgKind::UnixSeconds,
        "expire at this second",
    )
    .needed(),
    Arg::option(
        Tok::PxAt,
        "unix-time-milliseconds",
        ArgKind::UnixMillis,
        "expire at this millisecond",
    )
    .needed(),
    Arg::option(
        Tok::KeepTtl,
        "keepttl",
        ArgKind::Word,
        "keep the expiry the key has",
    )
    .needed(),
];

/// The options that say who wrote and why; the multi-key writes take these alone.
pub const ORIGIN_OPTIONS: &[Arg] = &[
    Arg::option(
        Tok::By,
        "agent",
        ArgKind::Name(crate::config::AGENT_MAX),
        "the declared agent",
    ),
    Arg::option(
        Tok::Meta,
        "json",
        ArgKind::Json,
        "a JSON object kept with the version",
    ),
    Arg::option(
        Tok::ReqId,
        "id",
        ArgKind::Name(crate::config::REQID_MAX),
        "makes the write safe to retry: if one of the key's last 16 versions carries this id, nothing is written and the reply is that version's",
    ),
];

/// The option that makes a write conditional.
pub const CONDITION_OPTIONS: &[Arg] = &[Arg::option(
    Tok::IfVersion,
    "version",
    ArgKind::Version,
    "write only over this version; 0: only if there is no live value. The reply is then that of a conditional write",
)];

const TOKEN: Arg = Arg::option(
    Tok::Token,
    "token",
    ArgKind::Token,
    "the writer's lock token, without which a locked key refuses the write",
);

const FENCE: Arg = Arg::option(
    Tok::Fence,
    "fence",
    ArgKind::Block(&[
        Arg::new("name", ArgKind::Owner),
        Arg::new("number", ArgKind::Integer(0, i64::MAX)),
    ]),
    "a token of a lock that lives elsewhere: the key keeps the highest for each name, at most 8 of them, and refuses a lower one",
);

const PARTITION: Arg = Arg::option(
    Tok::Partition,
    "partition",
    ArgKind::Partition,
    "charge what is written to this partition from now on, whatever the prefixes say",
);

/// The options of locks and partitions that the multi-key writes take.
pub const MANY_OPTIONS: &[Arg] = &[TOKEN.many(), FENCE, PARTITION];

/// The options that every single-key write takes besides.
pub const KEY_OPTIONS: &[Arg] = &[
    Arg::new("expiry", ArgKind::OneOf(EXPIRY)).maybe(),
    TOKEN,
    FENCE,
    PARTITION,
];

/// All options of a single-key write.
pub const WRITE_OPTIONS: &[&[Arg]] = &[ORIGIN_OPTIONS, CONDITION_OPTIONS, KEY_OPTIONS];
