//! Disks of a test's own: a sparse file with a file system, mounted until the suite ends.

use std::process::Command;

use camino::Utf8PathBuf;

use super::{require, watchdog};

/// A mounted disk of this size (as `truncate` reads it), made by a command that ends before the file's name;
/// `None`: nobody may make one here.
pub fn disk(mkfs: &str, size: &str) -> Option<Utf8PathBuf> {
    let program = mkfs.split(' ').next().unwrap_or_default();
    let able = format!("test \"$(id -u)\" = 0 && command -v {program} >/dev/null");
    let able = Command::new("sh").args(["-c", &able]).status();
    if !require(&format!("root and {program}"), able.is_ok_and(|status| status.success())) {
        return None;
    }
    let dir = tempfile::tempdir().expect("the temporary folder can be written to").keep();
    let dir = Utf8PathBuf::from_path_buf(dir).expect("we named it in UTF-8");
    // Whatever is left running there has been stopped by the sandboxes, which came later.
    watchdog::at_exit(&format!("umount -l {dir}/mounted; rm -rf {dir}"));
    // The server's user has to come through.
    let make = format!(
        "chmod 755 {dir} && mkdir {dir}/mounted && truncate -s {size} {dir}/disk && {mkfs} {dir}/disk && \
         mount -o loop {dir}/disk {dir}/mounted"
    );
    let output = Command::new("sh").args(["-c", &make]).output().expect("there is a shell");
    let failed = String::from_utf8_lossy(&output.stderr);
    let made = require(&format!("a disk by {mkfs} ({})", failed.trim()), output.status.success());
    made.then(|| dir.join("mounted"))
}
