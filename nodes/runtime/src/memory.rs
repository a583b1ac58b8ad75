//! How much memory this process has, and how much is left to it before the system ends something.

use std::fs;
use std::path::{Path, PathBuf};

use crate::procfs;

/// At one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Of this process in memory, in bytes.
    pub resident_bytes: u64,
    /// What processes can still have without swapping: of the machine, or less where a control group has a limit.
    pub available_bytes: u64,
}

/// Takes samples. Each costs a few reads of what the kernel holds in memory.
#[derive(Debug)]
pub struct Memory {
    /// From this process's own up to the root of what it sees; empty without control groups (version 2).
    groups: Vec<PathBuf>,
}

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

impl Memory {
    /// Of this process.
    pub fn new() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { groups: groups_of(&groups, Path::new(GROUPS)) }
    }

    /// Now. What the kernel doesn't tell is taken for no limit.
    pub fn sample(&self) -> Sample {
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
        let groups = self.groups.iter().filter_map(|group| left(group));
        Sample {
            resident_bytes: procfs::resident_bytes(Path::new("/proc/self")).unwrap_or_default(),
            available_bytes: groups.chain(machine).min().unwrap_or(u64::MAX),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// The control groups of a process, by its `/proc/PID/cgroup`: each level may have a limit.
fn groups_of(text: &str, mounted: &Path) -> Vec<PathBuf> {
    let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    // A group outside of what is mounted here is told with `..`.
    let own = Path::new(own);
    let inside = own.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let own = if inside { mounted.join(own) } else { mounted.to_owned() };
    own.ancestors().take_while(|group| group.starts_with(mounted)).map(Path::to_owned).collect()
}

/// `MemAvailable` of `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// What is left to a control group that has a limit: what of its memory the kernel can take back is not used up.
fn left(group: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // "max" is no number.
    let limit = number("memory.max")?;
    let used = number("memory.current")?;
    let stat = read("memory.stat").unwrap_or_default();
    let kept = ["active_file", "inactive_file", "slab_reclaimable"].map(|name| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or_default()
    });
    Some(limit.saturating_sub(used.saturating_sub(kept.iter().sum())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_some_and_something_is_left() {
        let sample = Memory::new().sample();
        assert!(sample.resident_bytes > 100 << 10 && sample.available_bytes > 1 << 20, "{sample:?}");
    }

    #[test]
    fn what_a_machine_has_left_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24630040 kB\nMemFree:          312 kB\nMemAvailable:   20259148 kB\n";
        assert_eq!(available(text), Some(20_259_148 * 1024));
        for text in ["", "MemAvailable: 1\n", "MemAvailable: x kB\n"] {
            assert_eq!(available(text), None, "{text}");
        }
    }

    #[test]
    fn every_level_of_control_groups_is_looked_at() {
        let mounted = Path::new("/m");
        let groups = |text| groups_of(text, mounted);
        let levels = ["/m/a.slice/b.service", "/m/a.slice", "/m"].map(PathBuf::from);
        assert_eq!(groups("4:memory:/x\n0::/a.slice/b.service\n"), levels);
        assert_eq!(groups("0::/\n"), [mounted]);
        assert_eq!(groups("0::/../other\n"), [mounted]);
        assert_eq!(groups("4:memory:/x\n"), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn a_group_has_its_limit_less_what_the_kernel_can_not_take_back() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        assert_eq!(left(group.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "900\n");
        assert_eq!(left(group.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(left(group.path()), Some(100));
        write("memory.stat", "anon 500\nactive_file 100\ninactive_file 200\nslab_reclaimable 30\nslab 60\n");
        assert_eq!(left(group.path()), Some(430));
        write("memory.current", "2000\n");
        assert_eq!(left(group.path()), Some(0));
    }
}
