//! Events over time as a drawing: bars of the families on one another, drawn on the server.

use std::fmt::Write;

use askama::filters::Safe;
use chrono::DateTime;
use shared::Family;

use crate::watch::{Counts, Traffic};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 150.0;
/// Room for the numbers at the left and the times below.
const LEFT: f64 = 46.0;
const BELOW: f64 = 22.0;
const ABOVE: f64 = 8.0;

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Its first minute, since the epoch.
    pub minute: i64,
    /// Events a minute by family; `None` where they were not counted yet.
    pub rates: Option<[f64; Family::ALL.len()]>,
}

/// Bars of so many minutes each, the last of which has `now` in it.
pub fn bars(traffic: &Traffic, number: i64, minutes: i64) -> Vec<Bar> {
    let now = traffic.now.timestamp() / 60;
    let end = (now / minutes + 1) * minutes;
    (0..number)
        .map(|n| end - (number - n) * minutes)
        .map(|first| {
            let counted: Vec<&Counts> = (first..first + minutes)
                .filter(|minute| *minute <= now)
                .filter_map(|minute| traffic.minutes.get(&minute))
                .collect();
            let rates = (!counted.is_empty()).then(|| {
                std::array::from_fn(|family| {
                    let sum: u64 = counted.iter().map(|counts| counts[family]).sum();
                    sum as f64 / counted.len() as f64
                })
            });
            Bar {
                minute: first,
                rates,
            }
        })
        .collect()
}

/// A rate in as few digits as tell it.
pub fn rate(value: f64) -> String {
    if value >= 1_000_000.0 {
        format!("{:.1}M", value / 1_000_000.0)
    } else if value >= 10_000.0 {
        format!("{:.0}k", value / 1_000.0)
    } else if value >= 10.0 || value == value.trunc() {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// The time of a minute, in UTC.
pub fn clock(minute: i64) -> String {
    DateTime::from_timestamp(minute * 60, 0)
        .map_or_else(String::new, |at| at.format("%H:%M").to_string())
}

/// The drawing. `every` is how many minutes there are between two times below it.
pub fn svg(id: &str, bars: &[Bar], every: i64, description: &str) -> Safe<String> {
    let most = bars
        .iter()
        .filter_map(|bar| bar.rates)
        .map(|rates| rates.iter().sum::<f64>())
        .fold(0.0, f64::max);
    let top = nice(most);
    let (plot_width, plot_height) = (WIDTH - LEFT, HEIGHT - BELOW - ABOVE);
    let width = plot_width / bars.len().max(1) as f64;
    let mut svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-description\">\
         <desc id=\"{id}-description\">{description}</desc>"
    );
    let mut draw = |arguments: std::fmt::Arguments<'_>| {
        svg.write_fmt(arguments).expect("a string takes everything");
    };
    for share in [0.0, 0.5, 1.0] {
        let y = ABOVE + plot_height * (1.0 - share);
        draw(format_args!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" x=\"{x}\" y=\"{text_y:.1}\" text-anchor=\"end\">{label}</text>",
            x = LEFT - 6.0,
            text_y = y + 4.0,
            label = rate(top * share),
        ));
    }
    for (n, bar) in bars.iter().enumerate() {
        let x = LEFT + n as f64 * width;
        if bar.minute % every == 0 && x + 30.0 < WIDTH {
            draw(format_args!(
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{y}\">{label}</text>",
                y = HEIGHT - 6.0,
                label = clock(bar.minute),
            ));
        }
        let mut y = ABOVE + plot_height;
        for (family, value) in bar.rates.into_iter().flatten().enumerate() {
            let height = value / top * plot_height;
            y -= height;
            if height > 0.0 {
                draw(format_args!(
                    "<rect class=\"family-{family}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>",
                    width = (width - 1.0).max(1.0),
                ));
            }
        }
    }
    svg.push_str("</svg>");
    Safe(svg)
}

/// The end of an axis that has this in it: 1, 2 or 5 times a power of ten.
fn nice(most: f64) -> f64 {
    let mut top = 1.0;
    for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
        if top >= most || top > 1e15 {
            break;
        }
        top *= factor;
    }
    top
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number() {
        let ends = [0.0, 1.0, 1.5, 3.0, 7.0, 11.0, 4_200.0].map(nice);
        assert_eq!(ends, [1.0, 1.0, 2.0, 5.0, 10.0, 20.0, 5_000.0]);
    }

    #[test]
    fn a_bar_is_the_mean_of_the_minutes_that_were_counted() {
        let now = DateTime::<Utc>::from_timestamp(600, 0).expect("a time");
        let minutes = [(6, [2, 0, 0]), (7, [4, 0, 1]), (10, [9, 9, 9])].into();
        let traffic = Traffic {
            minutes,
            now,
            ..Traffic::default()
        };
        let bars = bars(&traffic, 3, 5);
        assert_eq!(bars[0].rates, None);
        assert_eq!((bars[1].minute, bars[1].rates), (5, Some([3.0, 0.0, 0.5])));
        assert_eq!((bars[2].minute, bars[2].rates), (10, Some([9.0; 3])));
    }

    #[test]
    fn rates_are_short() {
        let texts = [0.0, 0.25, 3.0, 9.5, 1_234.4, 31_400.0, 2_300_000.0].map(rate);
        assert_eq!(texts, ["0", "0.2", "3", "9.5", "1234", "31k", "2.3M"]);
    }
}
