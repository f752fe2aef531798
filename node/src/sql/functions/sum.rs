//! `sum` over integers that fails instead of wrapping; every other type is the planner's own `sum`.

use std::mem::size_of_val;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use datafusion::arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};
use quorate_shared::error::WireError;

use crate::sql::errors::external;

/// The checked sum.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct CheckedSum {
    inner: Arc<AggregateUDF>,
}

impl CheckedSum {
    /// Around the planner's `sum`.
    pub fn new(inner: Arc<AggregateUDF>) -> Self {
        Self { inner }
    }

    fn is_ours(args: &AccumulatorArgs<'_>) -> bool {
        args.return_field.data_type() == &DataType::Int64 && !args.is_distinct
    }
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &'static str {
        "sum"
    }
    fn signature(&self) -> &Signature {
        self.inner.signature()
    }
    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }
    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }
    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if Self::is_ours(&args) { Ok(Box::new(Sum::default())) } else { self.inner.accumulator(args) }
    }
    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }
    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        Self::is_ours(&args) || self.inner.groups_accumulator_supported(args)
    }
    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        if Self::is_ours(&args) { Ok(Box::new(Sums::default())) } else { self.inner.create_groups_accumulator(args) }
    }
    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if Self::is_ours(&args) { Ok(Box::new(Sum::default())) } else { self.inner.create_sliding_accumulator(args) }
    }
    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

fn overflow() -> datafusion::common::DataFusionError {
    external(WireError::sql("22003", "sum() is out of range for BIGINT").hint("sum(CAST(x AS DECIMAL)) has 38 digits"))
}

fn total(values: &ArrayRef) -> Result<(i64, u64)> {
    let array = values.as_primitive::<Int64Type>();
    let mut sum = 0i64;
    for value in array.iter().flatten() {
        sum = sum.checked_add(value).ok_or_else(overflow)?;
    }
    Ok((sum, u64::try_from(array.len() - array.null_count()).unwrap_or(0)))
}

/// One sum; counts its values so that a window may take them away again.
#[derive(Debug, Default)]
struct Sum {
    sum: i64,
    count: u64,
}

impl Accumulator for Sum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        let (sum, count) = total(values)?;
        self.sum = self.sum.checked_add(sum).ok_or_else(overflow)?;
        self.count += count;
        Ok(())
    }
    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64((self.count > 0).then_some(self.sum)))
    }
    fn size(&self) -> usize {
        size_of_val(self)
    }
    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }
    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }
    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(values) = values.first() else { return Ok(()) };
        let (sum, count) = total(values)?;
        self.sum = self.sum.checked_sub(sum).ok_or_else(overflow)?;
        self.count = self.count.saturating_sub(count);
        Ok(())
    }
    fn supports_retract_batch(&self) -> bool {
        true
    }
}

/// A sum per group.
#[derive(Debug, Default)]
struct Sums {
    sums: Vec<i64>,
    seen: Vec<bool>,
}

impl GroupsAccumulator for Sums {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.sums.resize(total_num_groups, 0);
        self.seen.resize(total_num_groups, false);
        let Some(values) = values.first() else { return Ok(()) };
        let array = values.as_primitive::<Int64Type>();
        for (row, group) in group_indices.iter().enumerate() {
            let wanted = filter.is_none_or(|f| f.is_valid(row) && f.value(row));
            if !wanted || array.is_null(row) {
                continue;
            }
            if let (Some(sum), Some(seen)) = (self.sums.get_mut(*group), self.seen.get_mut(*group)) {
                *sum = sum.checked_add(array.value(row)).ok_or_else(overflow)?;
                *seen = true;
            }
        }
        Ok(())
    }
    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        let seen = emit_to.take_needed(&mut self.seen);
        Ok(Arc::new(sums.into_iter().zip(seen).map(|(sum, seen)| seen.then_some(sum)).collect::<Int64Array>()))
    }
    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.evaluate(emit_to)?])
    }
    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.update_batch(values, group_indices, None, total_num_groups)
    }
    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let Some(values) = values.first() else { return Ok(Vec::new()) };
        let array = values.as_primitive::<Int64Type>();
        let kept =
            array.iter().enumerate().map(|(i, v)| v.filter(|_| filter.is_none_or(|f| f.is_valid(i) && f.value(i))));
        Ok(vec![Arc::new(kept.collect::<Int64Array>())])
    }
    fn size(&self) -> usize {
        self.sums.capacity() * 8 + self.seen.capacity()
    }
}
