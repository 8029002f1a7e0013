//! Names for what belongs to a table that gets another name. Pure.

use std::collections::BTreeSet;

use super::wish::NAME_MAX;

/// What `name`, of an index or another thing that belongs to the table `old`, is called when the table is called `new`, and no name
/// that is `taken`: `orders_pkey` of `orders` is `orders_copy_pkey` of `orders_copy`.
pub fn renamed(name: &str, (old, new): (&str, &str), taken: &BTreeSet<String>) -> String {
    let wanted = match name.strip_prefix(old) {
        _ if old == new => name.to_owned(),
        Some(rest) => format!("{new}{rest}"),
        None => format!("{new}_{name}"),
    };
    let first = cut(&wanted, NAME_MAX).to_owned();
    let numbered = (2_u64..).map(|number| {
        let number = format!("_{number}");
        format!("{}{number}", cut(&wanted, NAME_MAX - number.len()))
    });
    std::iter::once(first).chain(numbered).find(|name| !taken.contains(name)).unwrap_or(wanted)
}

/// The start of `name` that has at most `bytes`.
fn cut(name: &str, mut bytes: usize) -> &str {
    bytes = bytes.min(name.len());
    while !name.is_char_boundary(bytes) {
        bytes -= 1;
    }
    &name[..bytes]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_table_is_called_after_it() {
        let taken = ["orders_pkey", "copy_pkey", "copy_pkey_2"].map(str::to_owned).into();
        let name = |name: &str, new: &str| renamed(name, ("orders", new), &taken);
        assert_eq!(name("orders_pkey", "copy"), "copy_pkey_3");
        assert_eq!(name("orders_pkey", "orders"), "orders_pkey_2");
        assert_eq!(name("by_day", "copy"), "copy_by_day");
        assert_eq!(name("by_day", "orders"), "by_day");
        let long = "ß".repeat(31);
        let cut = name(&format!("orders_{long}"), "copy");
        assert!(cut.len() <= NAME_MAX && cut.starts_with("copy_ß"), "{cut}");
    }
}
