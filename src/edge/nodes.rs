//! The nodes of a cluster, as one of them tells in the text of CLUSTER NODES.

/// The length of a node's name.
pub const NAME: usize = 40;

/// A master that serves slots, as this node sees it.
#[derive(Debug, PartialEq)]
pub struct Master {
    /// Its name.
    pub name: String,
    /// It is this node.
    pub is_myself: bool,
    /// A majority does not reach it.
    pub failed: bool,
    /// This node does not reach it.
    pub silent: bool,
}

/// What this node knows of its cluster.
#[derive(Debug, Default, PartialEq)]
pub struct Nodes {
    /// All masters that serve slots: those whose votes count.
    pub masters: Vec<Master>,
    /// The name of this node's own master, if it is a replica.
    pub own_master: Option<String>,
}

impl Nodes {
    /// From lines with name, address, flags, master, two times, epoch, link, slots.
    pub fn read(text: &str) -> Nodes {
        let mut nodes = Nodes::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [name, _, flags, master, ..] = words[..] else {
                continue;
            };
            let has = |flag: &str| flags.split(',').any(|f| f == flag);
            let serves = words.iter().skip(8).any(|slots| !slots.starts_with('['));
            let (is_myself, failed) = (has("myself"), has("fail"));
            if is_myself {
                nodes.own_master = (master.len() == NAME).then(|| master.to_owned());
            }
            if has("master") && serves && name.len() == NAME {
                nodes.masters.push(Master {
                    name: name.to_owned(),
                    is_myself,
                    failed,
                    silent: failed || has("fail?"),
                });
            }
        }
        nodes
    }
}
