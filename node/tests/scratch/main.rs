mod harness;
mod golden;
use harness::*;
use quorate_core::engine::memory::MemoryEngine;
#[test]
fn scratch() {
    let engine = MemoryEngine::new();
    let mut b = Boxed::new(&engine);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let path = std::env::var("SCRATCH").unwrap();
    let text_ = std::fs::read_to_string(path).unwrap();
    for sql in text_.split(";\n") {
        let sql = sql.trim();
        if sql.is_empty() { continue; }
        let short: String = sql.chars().take(150).collect();
        println!("> {short}");
        let t = std::time::Instant::now();
        let r = if let Some(db) = sql.lines().last().unwrap().strip_prefix("\\c ") { b.run(&format!("USE {db}")) } else { b.run(sql) };
        match r {
            Ok(a) => {
                for row in a.rows.iter().take(40) { println!("  {}", row.iter().map(text).collect::<Vec<_>>().join(" | ")); }
                print!("  {} {} [{:?}]", a.done.tag, a.done.rows, t.elapsed());
                for n in &a.done.notices { print!(" NOTICE {}", n.message); }
                println!();
            }
            Err(e) => println!("  ERROR {:?} {} | {} | {}", e.sqlstate, e.message, e.detail.unwrap_or_default(), e.hint.unwrap_or_default()),
        }
    }
}
