//! The sample database of the demo: a shop of some 10,000 rows over related tables, and a light write load on it.
//!
//! Everything is generated from one seed, so two demos hold the same data. The load is bounded: it updates stock and
//! overwrites a fixed number of page views, so that the data does not grow without end.

/// Name of the sample database.
pub const DATABASE: &str = "shop";
/// Rows of `page_view`; the load overwrites them in turn.
pub const PAGE_VIEWS: u64 = 1_000;

const CUSTOMERS: u64 = 1_000;
const PRODUCTS: u64 = 300;
const ORDERS: u64 = 2_500;
/// Rows of one INSERT.
const ROWS_PER_INSERT: usize = 500;

const SCHEMA: &[&str] = &[
    "CREATE TABLE category (id INT PRIMARY KEY, name VARCHAR(40) NOT NULL UNIQUE)",
    "CREATE TABLE product (id INT PRIMARY KEY, name VARCHAR(80) NOT NULL, category_id INT NOT NULL REFERENCES category (id), \
     price DECIMAL(10,2) NOT NULL CHECK (price > 0), stock INT NOT NULL DEFAULT 0)",
    "CREATE TABLE customer (id INT PRIMARY KEY, name VARCHAR(80) NOT NULL, email VARCHAR(120) NOT NULL UNIQUE, \
     city VARCHAR(40) NOT NULL, joined DATE NOT NULL)",
    "CREATE TABLE orders (id INT PRIMARY KEY, customer_id INT NOT NULL REFERENCES customer (id), \
     placed TIMESTAMP NOT NULL, status VARCHAR(10) NOT NULL)",
    "CREATE TABLE order_line (order_id INT NOT NULL REFERENCES orders (id) ON DELETE CASCADE, line INT NOT NULL, \
     product_id INT NOT NULL REFERENCES product (id), quantity INT NOT NULL CHECK (quantity > 0), \
     price DECIMAL(10,2) NOT NULL, PRIMARY KEY (order_id, line))",
    "CREATE TABLE page_view (slot INT PRIMARY KEY, customer_id INT NOT NULL, product_id INT NOT NULL, \
     viewed TIMESTAMP NOT NULL)",
];

const CATEGORIES: [&str; 12] =
    ["Tea", "Coffee", "Spices", "Bread", "Cheese", "Olives", "Honey", "Chocolate", "Pasta", "Rice", "Oil", "Wine"];
const KINDS: [&str; 10] =
    ["Mountain", "Harbour", "Garden", "Winter", "Sunday", "Smoked", "Wild", "Old Town", "Market", "Orchard"];
const FIRST: [&str; 16] = [
    "Ada", "Bjørn", "Chiara", "Dilan", "Emre", "Fatou", "Goran", "Hana", "Ines", "Jakub", "Kaya", "Léa", "Mateo",
    "Noor", "Olga", "Pavel",
];
const LAST: [&str; 16] = [
    "Almeida", "Berg", "Cohen", "Diaz", "Eriksen", "Fischer", "Gallo", "Haddad", "Ivanov", "Jansen", "Kowalski",
    "Laine", "Moreau", "Novak", "Okafor", "Petrov",
];
const CITIES: [&str; 10] =
    ["Aarhus", "Bilbao", "Cork", "Dresden", "Évora", "Firenze", "Gdańsk", "Helsinki", "İzmir", "Kraków"];
const STATUS: [&str; 4] = ["paid", "packed", "shipped", "returned"];

/// A small generator of numbers (SplitMix64, Steele et al. 2014).
pub struct Numbers(u64);

impl Numbers {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

fn pick<'a>(from: &[&'a str], at: u64) -> &'a str {
    from[usize::try_from(at % from.len() as u64).unwrap_or(0)]
}

fn inserts(table: &str, rows: &[String]) -> impl Iterator<Item = String> {
    rows.chunks(ROWS_PER_INSERT).map(move |rows| format!("INSERT INTO {table} VALUES {}", rows.join(", ")))
}

/// The statements that build the database, after `USE`.
pub fn statements() -> Vec<String> {
    let mut n = Numbers::new(7411);
    let mut out: Vec<String> = SCHEMA.iter().map(|s| (*s).to_owned()).collect();
    let categories: Vec<_> =
        CATEGORIES.iter().enumerate().map(|(at, name)| format!("({}, '{name}')", at + 1)).collect();
    out.extend(inserts("category", &categories));
    let mut prices = Vec::new();
    let products: Vec<_> = (1..=PRODUCTS)
        .map(|id| {
            let category = n.below(CATEGORIES.len() as u64);
            let price = format!("{}.{:02}", 1 + n.below(60), n.below(100));
            let (kind, noun) = (pick(&KINDS, n.next()), pick(&CATEGORIES, category));
            prices.push(price.clone());
            format!("({id}, '{kind} {noun} {id}', {}, {price}, {})", category + 1, 100 + n.below(900))
        })
        .collect();
    out.extend(inserts("product", &products));
    let customers: Vec<_> = (1..=CUSTOMERS)
        .map(|id| {
            let (first, last) = (pick(&FIRST, n.next()), pick(&LAST, n.next()));
            let (city, day) = (pick(&CITIES, n.next()), n.below(28) + 1);
            let month = n.below(12) + 1;
            format!("({id}, '{first} {last}', 'customer{id}@example.org', '{city}', '2025-{month:02}-{day:02}')")
        })
        .collect();
    out.extend(inserts("customer", &customers));
    let (mut orders, mut lines) = (Vec::new(), Vec::new());
    for id in 1..=ORDERS {
        let when =
            format!("2026-{:02}-{:02} {:02}:{:02}:00", n.below(10) + 1, n.below(28) + 1, n.below(24), n.below(60));
        orders.push(format!("({id}, {}, '{when}', '{}')", n.below(CUSTOMERS) + 1, pick(&STATUS, n.next())));
        for line in 1..=n.below(3) + 1 {
            let product = n.below(PRODUCTS);
            let price = &prices[usize::try_from(product).unwrap_or(0)];
            lines.push(format!("({id}, {line}, {}, {}, {price})", product + 1, n.below(5) + 1));
        }
    }
    out.extend(inserts("orders", &orders));
    out.extend(inserts("order_line", &lines));
    let views: Vec<_> = (0..PAGE_VIEWS)
        .map(|slot| format!("({slot}, {}, {}, '2026-11-01 00:00:00')", n.below(CUSTOMERS) + 1, n.below(PRODUCTS) + 1))
        .collect();
    out.extend(inserts("page_view", &views));
    out.push("CREATE INDEX orders_placed ON orders (placed)".to_owned());
    out
}

/// The `count`-th write of the load: mostly a page view over an old one, sometimes a change of stock.
pub fn write(count: u64) -> String {
    let mut n = Numbers::new(count);
    let (customer, product) = (n.below(CUSTOMERS) + 1, n.below(PRODUCTS) + 1);
    if count % 4 == 3 {
        let by = if n.below(2) == 0 { "- 1" } else { "+ 1" };
        return format!("UPDATE product SET stock = stock {by} WHERE id = {product}");
    }
    format!(
        "UPDATE page_view SET customer_id = {customer}, product_id = {product}, viewed = now() WHERE slot = {}",
        count % PAGE_VIEWS
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_shop_of_some_ten_thousand_rows_and_always_the_same() {
        let statements = statements();
        let rows: usize =
            statements.iter().filter(|s| s.starts_with("INSERT")).map(|s| s.matches("), (").count() + 1).sum();
        assert!((9_000..12_000).contains(&rows), "{rows} rows");
        assert_eq!(statements, super::statements());
    }

    #[test]
    fn the_load_stays_within_its_rows() {
        for count in 0..5_000 {
            let sql = write(count);
            assert!(sql.contains("WHERE slot = ") || sql.contains("WHERE id = "), "{sql}");
        }
        assert!(write(PAGE_VIEWS * 7 + 4).ends_with("WHERE slot = 4"));
    }
}
