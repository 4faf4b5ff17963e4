//! `examples/fencing`: what was sold and paid adds up through kills, moves, and a pause that nobody noticed.

use rustix::process::Signal;

use crate::{
    rig::{send, until, until_true},
    shop::Shop,
};

#[test]
fn a_stock_is_never_oversold() {
    let Some(shop) = Shop::open(400) else {
        return;
    };
    for _ in 0..4 {
        let holder = shop.holder("sale");
        shop.ok("sale.py", &["shop.db", "--buy", "40"]);
        send(holder.pid, Signal::KILL);
        until("another worker sells", 10_000, || {
            let next = shop.holder("sale");
            assert_eq!((next.node, next.fence), (holder.node, holder.fence));
            let is_new = next.pid != holder.pid;
            is_new.then_some(()).ok_or(format!("{next:?}"))
        });
    }
    let before = shop.holder("sale");
    shop.ok("sale.py", &["shop.db", "--buy", "40"]);
    shop.nodes[1].ok(&["singletons", "move", "sale", "--to", "n1"]);
    until_true("it has moved", 10_000, || shop.holder("sale").node == 1);
    assert!(shop.holder("sale").fence > before.fence);
    shop.ok("sale.py", &["shop.db", "--buy", "400"]);
    until("all orders are decided", 20_000, || {
        let waiting = "SELECT count(*) FROM orders WHERE state = 'waiting'";
        let waiting = shop.query("shop.db", waiting)[0];
        (waiting == 0).then_some(()).ok_or(format!("{waiting}"))
    });
    let sold = "SELECT sum(units), count(*), count(DISTINCT buyer) FROM sales";
    let [units, sales, buyers] = shop.query("shop.db", sold)[..] else {
        panic!("three numbers were asked for");
    };
    assert_eq!((units, sales), (400, buyers));
    let states = "SELECT sum(state = 'sold'), sum(state = 'sold out') FROM orders";
    assert_eq!(shop.query("shop.db", states), [buyers, 600 - buyers]);
    assert_eq!(shop.query("shop.db", "SELECT units FROM stock"), [0]);
    shop.ok("sale.py", &["shop.db", "--report"]);
    shop.nobody_overlapped("sale");
}

#[test]
fn payments_are_made_once_each() {
    let Some(shop) = Shop::open(1) else {
        return;
    };
    // Everybody asks twice, as whoever got no answer does.
    shop.lines(
        "import payments\n\
         for n in range(300):\n    \
             for again in range(2): payments.ask('queue.db', f'invoice-{n}', f'payee-{n % 7}', str(n + 1))",
    );
    // The bank has paid, and the queue does not know it yet: there the worker is killed.
    for turn in 0..3 {
        let holder = shop.holder("payments");
        let key = format!("receipt-{turn}");
        let words = ["queue.db", "bank.db", "--pay", "alice", "12.50", "--key"];
        shop.ok(
            "payments.py",
            &[&words[..], &[&key, "--receipt-ms", "800"]].concat(),
        );
        said(&shop, &format!("{key}: paid"));
        send(holder.pid, Signal::KILL);
        said(&shop, &format!("{key}: the bank has paid it already"));
    }
    shop.nodes[0].ok(&["singletons", "move", "payments", "--to", "n1"]);
    until_true("it has moved", 10_000, || shop.holder("payments").node == 1);
    until("all is paid", 30_000, || {
        let waiting = "SELECT count(*) FROM payments WHERE state = 'waiting'";
        let waiting = shop.query("queue.db", waiting)[0];
        (waiting == 0).then_some(()).ok_or(format!("{waiting}"))
    });
    let cents = (1..=300).sum::<i64>() * 100 + 3 * 1250;
    let ledger = "SELECT count(*), sum(cents) FROM ledger";
    assert_eq!(shop.query("bank.db", ledger), [303, cents]);
    let accounts = "SELECT sum(cents) FROM accounts";
    assert_eq!(shop.query("bank.db", accounts), [cents]);
    shop.ok("payments.py", &["queue.db", "bank.db", "--report"]);
    shop.nobody_overlapped("payments");
}

/// The worker on the first node wrote that.
fn said(shop: &Shop, words: &str) {
    let log = shop.nodes[0].log("payments/0");
    until("the worker says so", 20_000, || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let is_said = text.contains(words);
        is_said.then_some(()).ok_or(format!("{words:?}: {text}"))
    });
}

/// Keeper, supervisor and worker are stopped between the worker's look at its page and its write, as a hypervisor stops a machine. Nobody
/// is awake who could kill the worker when it alone goes on: this is what the fence is for.
#[test]
fn a_revived_holder_is_refused_by_the_store() {
    let Some(shop) = Shop::open(100) else {
        return;
    };
    let old = shop.holder("sale");
    shop.ok("sale.py", &["shop.db", "--buy", "1", "--card-ms", "1000"]);
    let log = shop.nodes[0].log("sale/0");
    until_true("it has looked, and asks the bank", 5_000, || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("asking the buyer's bank"))
    });
    let supervisor = shop.nodes[0].status().supervisor();
    let frozen = [shop.nodes[0].keeper(), supervisor, old.pid];
    for pid in frozen {
        send(pid, Signal::STOP);
    }
    let next = until("another node takes over", 20_000, || {
        shop.holder_at(1, "sale").ok_or("nobody".to_owned())
    });
    assert!(next.fence > old.fence);
    let sold = |fence: u64| {
        let count = format!("SELECT count(*) FROM sales WHERE fence = {fence}");
        shop.query("shop.db", &count)[0]
    };
    until_true("it sells", 5_000, || sold(next.fence) == 1);
    send(old.pid, Signal::CONT);
    let refused = until("the old one is refused", 5_000, || {
        let words = shop.record("sale");
        let word = words.into_iter().find(|word| word.text != "there");
        word.ok_or("it said nothing".to_owned())
    });
    assert_eq!((refused.node.as_str(), refused.fence), ("n0", old.fence));
    let why = format!(
        "fenced: 0:{} is older than 0:{}; page: no",
        old.fence, next.fence
    );
    assert_eq!(refused.text, why);
    for pid in frozen {
        send(pid, Signal::CONT);
    }
    shop.stands_by(0, "sale");
    assert_eq!((sold(old.fence), sold(next.fence)), (0, 1));
    shop.ok("sale.py", &["shop.db", "--report"]);
}

/// (epoch, fence) is one number with two digits: whoever has a greater epoch is newer, whatever his fence.
#[test]
fn a_store_knows_who_is_newer() {
    let Some(python) = crate::shop::python() else {
        return;
    };
    let dir = crate::shop::directory();
    let output = std::process::Command::new(python)
        .args(["-B", "-c", include_str!("newer.py")])
        .env("PYTHONPATH", crate::shop::examples().join("fencing"))
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{error}");
}
