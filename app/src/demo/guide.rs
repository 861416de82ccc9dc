//! The output of the demonstration: URLs, and what to try.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{Demo, Instance, serve_arguments};

/// Printed once everything is ready. Programs can wait for the first line.
pub fn print(demo: &Demo, evenkeel: &Path, listen: SocketAddr, admin: SocketAddr) {
    println!("{}", text(demo, evenkeel, listen, admin));
}

fn text(demo: &Demo, evenkeel: &Path, listen: SocketAddr, admin: SocketAddr) -> String {
    let cli = quoted(&near(evenkeel));
    let cli = if admin.port() == 8889 { cli } else { format!("{cli} --admin http://{admin}") };
    let victim = demo.instances.first();
    let pid = victim.and_then(|instance| instance.child.as_ref()).map_or(0, super::Child::pid);
    let drained = demo.instances.get(1).map(|instance| instance.address.to_string()).unwrap_or_default();
    let mut text = format!("demo ready on http://{listen} (admin http://{admin})\n\nRunning:\n");
    let balancer = demo.balancer.as_ref().map_or(0, super::Child::pid);
    let _ = writeln!(text, "  evenkeel  {listen:<15}  pid {balancer}");
    for instance in &demo.instances {
        let pid = instance.child.as_ref().map_or(0, super::Child::pid);
        let _ = writeln!(text, "  {:<8}  {:<15}  pid {pid}", instance.name, instance.address);
    }
    let _ = write!(
        text,
        r#"
Open http://{listen} and reload: each instance has its own colour. Sign up, log in, write a post.
Then try, from another terminal:

  Switch the algorithm, and reload again to see it
    curl -X POST http://{admin}/admin/algorithm -H 'Content-Type: application/json' -d '{{"algorithm":"least-connections"}}'
    {cli} algorithm ip-hash
    {cli} algorithm weighted

  Kill an instance: you stay logged in, nobody sees an error
    kill -9 {pid}

  Drain one: it finishes what it has and gets nothing new
    {cli} drain {drained}

  Watch
    {cli} status --watch
    curl http://{admin}/metrics
    tail -f {access_log}

Data and logs are in {folder}. Ctrl-C stops everything."#,
        access_log = quoted(&near(&super::access_log(&demo.folder))),
        folder = near(&demo.folder).display(),
    );
    text
}

/// Reports that an instance has ended, and how to restart it.
pub fn print_ended(instance: &Instance, how: &str, folder: &Path) {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("app"));
    let arguments = serve_arguments(&instance.name, instance.address, folder);
    let arguments: Vec<_> = arguments.iter().map(|argument| quoted(Path::new(argument))).collect();
    println!(
        "\n{} {how}. The balancer finds out and the others carry on. To bring it back:\n    {} {}",
        instance.name,
        quoted(&near(&program)),
        arguments.join(" "),
    );
}

/// Relative to the current folder, if that is shorter.
fn near(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(here) {
        Ok(rest) if rest.components().count() > 1 => rest.to_owned(),
        // A bare name would be searched in PATH.
        Ok(rest) => Path::new(".").join(rest),
        Err(_) => path.to_owned(),
    }
}

/// Quoted for a shell.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        assert_eq!(quoted(Path::new("/usr/bin/app")), "/usr/bin/app");
        assert_eq!(quoted(Path::new("/my files/it's")), r"'/my files/it'\''s'");
    }

    #[test]
    fn the_guide_names_real_ports_and_the_flag_for_another_admin_port() {
        let demo = Demo {
            folder: "/data".into(),
            balancer: None,
            instances: ["127.0.0.1:9001", "127.0.0.1:9002"]
                .map(|address| Instance { name: "web".into(), address: address.parse().unwrap(), child: None })
                .into(),
        };
        let text =
            text(&demo, Path::new("/bin/evenkeel"), "127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        assert!(text.starts_with("demo ready on http://127.0.0.1:1 (admin http://127.0.0.1:2)\n"), "{text}");
        assert!(text.contains("/bin/evenkeel --admin http://127.0.0.1:2 drain 127.0.0.1:9002"), "{text}");
    }
}
