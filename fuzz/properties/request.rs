//! A request as the fuzzers write it: lines of `name:value`, an empty line, the body.

pub(crate) struct Request<'i> {
    headers: Vec<(&'i [u8], &'i [u8])>,
    pub(crate) body: &'i [u8],
}

impl<'i> Request<'i> {
    pub(crate) fn parse(input: &'i [u8]) -> Self {
        let end = input.windows(2).position(|pair| pair == b"\n\n");
        let (head, body) = match end {
            Some(end) => (&input[..end], &input[end + 2..]),
            None => (input, &[][..]),
        };
        let headers = head
            .split(|&byte| byte == b'\n')
            .filter_map(|line| {
                let colon = line.iter().position(|&byte| byte == b':')?;
                Some((&line[..colon], &line[colon + 1..]))
            })
            .collect();
        Self { headers, body }
    }

    /// All values of a header, in order.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &'i [u8]> {
        self.headers
            .iter()
            .filter(move |(known, _)| *known == name.as_bytes())
            .map(|(_, value)| *value)
    }
}
