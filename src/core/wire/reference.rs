//! The reference for people, rendered from the table.

use super::spec::{Arg, ArgKind, CommandSpec, Toks};

macro_rules! public_specs {
    ($($kind:ident $name:ident),*) => {
        /// Every public command, in the order of the reference.
        pub const COMMANDS: &[&CommandSpec] = &[
            $(<super::requests::$name<'static> as super::Request<'static>>::SPEC),*
        ];
    };
}
crate::for_each_command!(public_specs);

/// The usage line of a command, in Redis' notation.
pub fn usage(spec: &CommandSpec) -> String {
    let mut out = spec.name.to_string();
    for arg in spec.all_args().filter(|a| !a.reserved) {
        out.push(' ');
        out += &usage_of(arg);
    }
    out
}

fn usage_of(arg: &Arg) -> String {
    let inner = match arg.kind {
        ArgKind::Word => String::new(),
        ArgKind::OneOf(of) => join(of, " | "),
        ArgKind::Block(of) => join(of, " "),
        _ => arg.name.to_string(),
    };
    let choice = matches!(arg.kind, ArgKind::OneOf(_));
    let mut text = match arg.token {
        Some(t) if inner.is_empty() => t.word().to_string(),
        Some(t) if choice => format!("{} <{inner}>", t.word()),
        Some(t) => format!("{} {inner}", t.word()),
        None => inner,
    };
    if arg.multiple {
        text = match arg.token {
            // Long enough to be said once.
            Some(t) if choice || matches!(arg.kind, ArgKind::Block(_)) => {
                format!("{text} [{} ...]", t.word())
            }
            _ => format!("{text} [{text} ...]"),
        };
    }
    match (arg.optional, arg.kind) {
        (true, _) => format!("[{text}]"),
        (false, ArgKind::OneOf(_)) if arg.token.is_none() => format!("<{text}>"),
        _ => text,
    }
}

fn join(args: &[Arg], between: &str) -> String {
    let parts: Vec<_> = args.iter().map(usage_of).collect();
    parts.join(between)
}

/// What a command with subcommands says of them.
pub fn help(container: &str) -> Vec<String> {
    let of = COMMANDS.iter().filter(|c| c.names().0 == container);
    let lines = of.flat_map(|c| [usage(c), format!("    {}.", c.summary)]);
    lines.collect()
}

/// The command reference as Markdown.
pub fn markdown() -> String {
    let mut out = String::new();
    for spec in COMMANDS {
        out += &format!(
            "#### `{}`\n\n{}. {}.\n\n{}\n\n",
            usage(spec),
            spec.summary,
            spec.complexity,
            spec.reply
        );
        let codes: Vec<_> = spec
            .refusals
            .iter()
            .map(|c| format!("`{}`", c.word()))
            .collect();
        if !codes.is_empty() {
            out += &format!("Refusals: {}.\n\n", codes.join(" "));
        }
        out += &format!("```\n{}\n```\n\n", spec.examples.trim());
    }
    out += "#### Options\n\n| option | meaning |\n| --- | --- |\n";
    let mut seen: Toks = 0;
    for arg in COMMANDS.iter().flat_map(|s| s.all_args()) {
        option_rows(arg, &mut seen, &mut out);
    }
    out += "\n#### Refusals\n\n| first word | meaning |\n| --- | --- |\n";
    for code in crate::Code::ALL {
        out += &format!("| `{}` | {} |\n", code.word(), code.meaning());
    }
    out
}

fn option_rows(arg: &Arg, seen: &mut Toks, out: &mut String) {
    if let ArgKind::OneOf(of) = arg.kind {
        of.iter().for_each(|a| option_rows(a, seen, out));
    }
    let Some(tok) = arg.token.filter(|t| !arg.reserved && *seen & t.bit() == 0) else {
        return;
    };
    *seen |= tok.bit();
    let bare = Arg {
        optional: false,
        ..*arg
    };
    *out += &format!("| `{}` | {} |\n", usage_of(&bare), arg.meaning);
}
